"""The data sets by name: `source(config, data_dir, allow_unverified)` of each finds it and makes uint8 pictures (or float32 rows)
of it, once (prepare); the trainer only maps what prepare made."""

from __future__ import annotations

from trainer.data import airfoil, cifar10, digits, fashion_mnist, imagefolder, linear, synthetic, voc

DATASETS = {
    "airfoil": airfoil, "cifar10": cifar10, "digits": digits, "fashion_mnist": fashion_mnist, "imagefolder": imagefolder,
    "linear": linear, "synthetic": synthetic, "voc": voc,
}  # fmt: skip
