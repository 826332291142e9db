"""Tests against a real docker engine: the private one that they start, and the image that they
build in it.
"""
