"""`python -m launch` is `batchyard`, for a Python whose scripts are not on PATH."""

import sys

import trainer  # noqa: F401  # of the folder that this package is from, also once that is not the first to be searched

if not sys.flags.safe_path:
    # `-m` puts the current folder first, where a random.py would hide Python's own
    sys.path.append(sys.path.pop(0))

from launch.cli import main

if __name__ == "__main__":
    main()
