"""`python -m memax_rl` is the command line, as `memax-rl` is."""

import sys

from memax_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
