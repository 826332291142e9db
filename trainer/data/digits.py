"""scikit-learn's digits: 1,797 real grey pictures of 8x8 that ship in the package (UCI, Alpaydin & Kaynak 1998)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.config.data import DigitsData

VERSION = 1  # raised when `convert` gives other bytes
CLASSES = [str(digit) for digit in range(10)]
TRAIN_SAMPLES = 1437


def sources(config: DigitsData, data_dir: Path, allow_unverified: bool) -> dict[str, bytes]:
    """The raw content that decides the result, by name. Raises ImportError without scikit-learn."""
    from sklearn.datasets import load_digits  # 1 s to import, needed here only

    raw = load_digits()
    return {"images": raw.images.astype(np.uint8).tobytes(), "labels": raw.target.astype(np.uint8).tobytes()}


def classes(config: DigitsData) -> list[str]:
    return CLASSES


def convert(config: DigitsData, raw: dict[str, bytes]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train", "test"} -> (pictures uint8 [N, 1, 8, 8] over 0..255, labels int64 [N]), by a seeded permutation."""
    grey = np.frombuffer(raw["images"], np.uint8).reshape(-1, 1, 8, 8)
    images = np.rint(grey.astype(np.float64) * (255 / 16)).astype(np.uint8)  # the source counts 0..16
    labels = np.frombuffer(raw["labels"], np.uint8).astype(np.int64)
    permutation = np.random.RandomState(0).permutation(len(images))  # RandomState's stream is frozen by numpy's policy
    train, test = permutation[:TRAIN_SAMPLES], permutation[TRAIN_SAMPLES:]
    return {"train": (images[train], labels[train]), "test": (images[test], labels[test])}
