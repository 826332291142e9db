"""The torch-free door between the packages: what a run computes (`run`), where it lies (`layout`),
how it ended (`outcome`).
"""
