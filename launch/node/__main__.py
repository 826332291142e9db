"""`python -P -m launch.node RUN_DIR`: one attempt of a run on this node (launch.node.attempt)."""

import sys

from launch.node.attempt import main

if __name__ == "__main__":
    sys.exit(main())
