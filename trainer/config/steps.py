"""How many samples a run trains on, and in how many steps: what the trainer does and what `status` shows. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def held_out(samples: int, fraction: float) -> int:
    """How many of so many train samples a validation split of that part has: at least one, and one is left."""
    return min(max(1, round(fraction * samples)), samples - 1)


def per_epoch(samples: int, global_batch_size: int) -> int:
    """Steps of an epoch; the last one may be of fewer samples."""
    return -(-samples // global_batch_size)


def total(steps_per_epoch: int, epochs: int, max_steps: int | None) -> int:
    """Steps of a whole run."""
    steps = steps_per_epoch * epochs
    return steps if max_steps is None else min(steps, max_steps)


def planned(train: Mapping[str, Any], prepared: int) -> int:
    """Steps of a run that has not begun. train: of its config.json; prepared: train samples of its data as they were prepared."""
    data = train["data"]
    samples = prepared
    if (wanted := data.get("train_samples")) is not None:
        samples = min(samples, wanted)
    if (fraction := data.get("validation")) is not None:
        samples -= held_out(samples, fraction)
    return total(per_epoch(samples, train["global_batch_size"]), train["epochs"], train.get("max_steps"))
