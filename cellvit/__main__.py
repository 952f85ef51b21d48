"""``python -m cellvit`` is the command ``cellvit``."""

import sys

from cellvit.cli import main

if __name__ == "__main__":
    sys.exit(main())
