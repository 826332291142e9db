"""The settings of the models."""
