"""Kills a run on purpose, and compares what it ends with."""
