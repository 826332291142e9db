"""Tests against a real Slurm: the cluster that they boot, and the jobs that they give it."""
