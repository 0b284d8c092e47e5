"""`python -m radixserve` is the command `radixserve`."""

import sys

from radixserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
