"""Weights to begin with: fetched, read and matched with the model."""
