"""For all tests: threads of torch that wait for each other sleep soon, as they do in the engine
process.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "5000")  # read when torch is imported
