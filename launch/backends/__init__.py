"""Start and stop what is planned: on this machine, in a container, on Slurm."""
