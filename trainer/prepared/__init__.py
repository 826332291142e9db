"""Prepared data: uint8 images or float32 rows in files that the trainer maps."""
