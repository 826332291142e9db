"""One request becomes a run directory that can be started."""
