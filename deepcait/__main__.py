"""`python -m deepcait` is the command."""

import sys

from deepcait.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
