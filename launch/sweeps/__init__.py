"""Many runs: the points of a sweep, the trials of a search."""
