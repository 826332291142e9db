"""Made pictures that a model can learn: a random pattern a class, seen through noise.

For tests and speed, never for results.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.data import SyntheticData
from trainer.prepared.raw import Allowed, Piece, Source

VERSION = 1


def source(config: SyntheticData, data_dir: Path, allowed: Allowed) -> Source:
    """Nothing is read: the settings decide everything."""
    shape = (config.samples, config.classes, config.channels, config.size)
    return Source(
        [str(i) for i in range(config.classes)],
        {"settings": ",".join(map(str, shape)).encode()},
        convert(config),
    )


def convert(config: SyntheticData) -> Iterator[Piece]:
    """Pictures uint8 [N, C, size, size]."""
    rng = np.random.RandomState(0)
    patterns = rng.randint(64, 192, (config.classes, config.channels, config.size, config.size))
    for split, samples in (("train", config.samples), ("test", max(1, config.samples // 4))):
        labels = rng.randint(0, config.classes, samples).astype(np.int64)
        noise = rng.randint(-64, 64, (samples, *patterns.shape[1:]))
        yield Piece(split, (patterns[labels] + noise).astype(np.uint8), labels)
