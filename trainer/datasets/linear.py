"""Made rows of a linear model with noise: what a regression finds can be held against what made
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.tables import LinearData
from trainer.prepared.errors import DataError
from trainer.prepared.raw import Allowed, Piece, Source

VERSION = 1  # raised when `convert` gives other bytes


def source(config: LinearData, data_dir: Path, allowed: Allowed) -> Source:
    """Nothing is read: the settings decide everything."""
    settings = config.model_dump_json(exclude={"validation"})
    return Source(["y"], {"settings": settings.encode()}, convert(config))


def convert(config: LinearData) -> Iterator[Piece]:
    """Rows float32 [N, features, 1, 1], targets float32 [N, 1]; worked out in float64.

    Raises DataError.
    """
    rng = np.random.RandomState(config.data_seed)  # its stream is frozen by numpy's policy
    for split, samples in (("train", config.train_samples), ("test", config.test_samples)):
        x = rng.standard_normal((samples, config.features))
        y = (
            (x * np.asarray(config.w)).sum(1)
            + config.b
            + config.noise * rng.standard_normal(samples)
        )
        if not np.abs(y).max() <= np.finfo(np.float32).max:
            raise DataError(
                "linear: w, b and noise make targets that float32 does not hold: choose smaller"
                " ones"
            )
        yield Piece(split, x.astype(np.float32)[:, :, None, None], y.astype(np.float32)[:, None])
