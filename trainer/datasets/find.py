"""The data sets by name: `source(config, data_dir, allowed)` of each finds it and makes uint8
pictures (or float32 rows) of it, once (prepare); the trainer only maps what prepare made.
"""

from __future__ import annotations

import importlib
from types import ModuleType

DATASETS = (
    "airfoil",
    "cifar10",
    "digits",
    "fashion_mnist",
    "imagefolder",
    "linear",
    "synthetic",
    "voc",
)


def dataset(name: str) -> ModuleType:
    """The module of a data set, imported with nothing of the others: each submit looks at one."""
    return importlib.import_module(f"trainer.datasets.{name}")
