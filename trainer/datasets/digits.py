"""scikit-learn's digits: 1,797 real grey pictures of 8x8 that ship in the package (UCI, Alpaydin &
Kaynak 1998).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from trainer.config.data import DigitsData
from trainer.prepared.raw import Allowed, Piece, Source

VERSION = 1  # raised when `convert` gives other bytes
CLASSES = [str(digit) for digit in range(10)]
TRAIN_SAMPLES = 1437


def source(config: DigitsData, data_dir: Path, allowed: Allowed) -> Source:
    """The pictures in the package, read from its file: to import it takes a second.

    Raises ImportError without scikit-learn.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ImportError(
            "digits ships with scikit-learn, which is not installed: pip install scikit-learn"
        )
    with gzip.open(
        Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt"
    ) as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # 64 grey values and the digit
    content = {"images": rows[:, :-1].tobytes(), "labels": rows[:, -1].tobytes()}
    return Source(CLASSES, content, convert(content))


def convert(raw: dict[str, bytes]) -> Iterator[Piece]:
    """Pictures uint8 [N, 1, 8, 8] over 0..255, by a seeded permutation."""
    grey = np.frombuffer(raw["images"], np.uint8).reshape(-1, 1, 8, 8)
    # the source counts 0..16
    images = np.rint(grey.astype(np.float64) * (255 / 16)).astype(np.uint8)
    labels = np.frombuffer(raw["labels"], np.uint8).astype(np.int64)
    # RandomState's stream is frozen by numpy's policy
    permutation = np.random.RandomState(0).permutation(len(images))
    train, test = permutation[:TRAIN_SAMPLES], permutation[TRAIN_SAMPLES:]
    yield Piece("train", images[train], labels[train])
    yield Piece("test", images[test], labels[test])
