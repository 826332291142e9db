"""`python -m launch` is `batchyard`, for a Python whose scripts are not on PATH."""

from launch.cli import main

if __name__ == "__main__":
    main()
