"""The ranks of a run: their group, what they agree on, and their heartbeats."""
