"""What is on disk: the runs and sweeps, their states and how they ended."""
