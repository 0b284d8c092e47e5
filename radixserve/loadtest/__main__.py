"""`python -m radixserve.loadtest`."""

from __future__ import annotations

import sys

from radixserve.loadtest.cli import main

sys.exit(main())
