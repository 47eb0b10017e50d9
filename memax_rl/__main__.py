"""`python -m memax_rl` is the command line, as `memax-rl` is."""

import sys

# `python -m` searches the current folder first, which may be a stranger's: its popgym.py would be ours. The package
# itself is found already.
if __name__ == "__main__":
    del sys.path[0]

from memax_rl.cli import main

if __name__ == "__main__":
    sys.exit(main())
