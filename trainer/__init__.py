"""The trainer: everything that knows torch. It never imports `launch`."""
