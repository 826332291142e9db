"""What a verb shows and waits for: a run, a sweep, a table."""
