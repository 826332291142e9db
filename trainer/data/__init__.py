"""The data sets by name: each converts its sources to uint8 pictures once (prepare); the trainer only maps what prepare made."""

from __future__ import annotations

from trainer.data import cifar10, digits, fashion_mnist, synthetic

DATASETS = {"cifar10": cifar10, "digits": digits, "fashion_mnist": fashion_mnist, "synthetic": synthetic}
