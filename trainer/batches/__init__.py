"""From prepared arrays to augmented micro-batches."""
