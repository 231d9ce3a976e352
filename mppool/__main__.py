"""The command `mppool`, as `python -m mppool`."""

import sys

from mppool._shell.command_line import main

if __name__ == "__main__":
    sys.exit(main())
