"""What runs on a compute node, by the standard library alone: one attempt of one run."""
