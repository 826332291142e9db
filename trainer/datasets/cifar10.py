"""CIFAR-10 in torchvision's layout: DATA/cifar-10-batches-py/ (Krizhevsky 2009: Learning multiple
layers of features).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.data import CIFAR10Data
from trainer.prepared import errors, raw
from trainer.prepared.raw import Allowed, Piece, Source

VERSION = 1
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
PUBLISHED = {  # md5, as torchvision.datasets.CIFAR10 holds them
    "data_batch_1": ("md5", "c99cafc152244af753f735de768cd75f"),
    "data_batch_2": ("md5", "d4bba439e000b95fd0a9bffe97cbabec"),
    "data_batch_3": ("md5", "54ebc095f3ab1f0389bbae665268c751"),
    "data_batch_4": ("md5", "634d18415352ddfa80567beed471001a"),
    "data_batch_5": ("md5", "482c414d41f54cd18b22e5b47cb7c3cb"),
    "test_batch": ("md5", "40351d587109b95175f43aff81a1287e"),
}


def source(config: CIFAR10Data, data_dir: Path, allowed: Allowed) -> Source:
    """The six batch files. Raises errors.DataError."""

    def fetch() -> None:
        from torchvision.datasets import CIFAR10  # 1.7 s to import, and an extra

        data_dir.mkdir(parents=True, exist_ok=True)
        CIFAR10(str(data_dir), download=True)

    folder = data_dir / "cifar-10-batches-py"
    content, unverified = raw.read(
        folder, PUBLISHED, what="CIFAR-10", allow_unverified=allowed.unverified, fetch=fetch
    )
    return Source(CLASSES, content, convert(content), unverified=unverified)


def convert(content: dict[str, bytes]) -> Iterator[Piece]:
    """Pictures uint8 [N, 3, 32, 32] in the files' own order."""

    def read(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        batches = [
            _ArraysOnly(io.BytesIO(content[name]), encoding="latin1").load() for name in names
        ]
        images = np.concatenate([np.asarray(b["data"], np.uint8) for b in batches]).reshape(
            -1, 3, 32, 32
        )
        return images, np.concatenate([np.asarray(b["labels"], np.int64) for b in batches])

    yield Piece("train", *read([f"data_batch_{i}" for i in range(1, 6)]))
    yield Piece("test", *read(["test_batch"]))


_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and plain values: a pickle that was not verified must not run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise errors.DataError(
                f"a CIFAR-10 batch file wants to load {module}.{name}: it is no data, remove it"
            )
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
