"""Published results beside the ones that were measured."""
