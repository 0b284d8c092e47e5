"""Where temporary files lie if no usual folder for them can be written: in memory.

torch cannot be imported without a folder for temporary files, even though nothing is written to it
here. Imports no torch: the front process calls this before it starts the others.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

MEMORY = Path("/dev/shm")
"""Linux's file system in memory. In a container it often holds 64 MB."""


def ensure_temporary_folder() -> None:
    """If no folder for temporary files can be written, make MEMORY that folder, for this process
    and those that it starts.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ["TMPDIR"] = str(MEMORY)
