"""`python -m patchssl` is the command `patchssl`."""

import sys

from patchssl.cli.main import main

# Loader processes that are started afresh import this file again under another name.
if __name__ == "__main__":
    sys.exit(main())
