"""Made pictures that a model can learn: a random pattern a class, seen through noise. For tests and speed, never for results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.config.data import SyntheticData

VERSION = 1


def classes(config: SyntheticData) -> list[str]:
    return [str(i) for i in range(config.classes)]


def sources(config: SyntheticData, data_dir: Path, allow_unverified: bool) -> dict[str, bytes]:
    """Nothing is read: the settings decide everything."""
    shape = (config.samples, config.classes, config.channels, config.size)
    return {"settings": ",".join(map(str, shape)).encode()}


def convert(config: SyntheticData, content: dict[str, bytes]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"train", "test"} -> (pictures uint8 [N, C, size, size], labels int64 [N])."""
    rng = np.random.RandomState(0)
    patterns = rng.randint(64, 192, (config.classes, config.channels, config.size, config.size))
    splits = {}
    for split, samples in (("train", config.samples), ("test", max(1, config.samples // 4))):
        labels = rng.randint(0, config.classes, samples).astype(np.int64)
        noise = rng.randint(-64, 64, (samples, *patterns.shape[1:]))
        splits[split] = ((patterns[labels] + noise).astype(np.uint8), labels)
    return splits
