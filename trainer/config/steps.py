"""How many samples a run trains on, and in how many steps: what the trainer does and what `status`
shows. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def held_out(samples: int, fraction: float) -> int:
    """How many of so many train samples a validation split of that part has: at least one, and one
    is left.
    """
    return min(max(1, round(fraction * samples)), samples - 1)


def per_epoch(samples: int, global_batch_size: int) -> int:
    """Steps of an epoch; the last one may be of fewer samples."""
    return -(-samples // global_batch_size)


def total(steps_per_epoch: int, epochs: int, max_steps: int | None) -> int:
    """Steps of a whole run."""
    steps = steps_per_epoch * epochs
    return steps if max_steps is None else min(steps, max_steps)


def planned(train: Mapping[str, Any], prepared: int) -> int:
    """Steps of a run that has not begun. train: of its config.json; prepared: train samples of its
    data as they were prepared.
    """
    samples = trained_on(
        prepared, train["data"].get("train_samples"), train["data"].get("validation")
    )
    return total(
        per_epoch(samples, train["global_batch_size"]), train["epochs"], train.get("max_steps")
    )


def trained_on(prepared: int, wanted: int | None, fraction: float | None) -> int:
    """How many of the prepared train samples are trained on: the first `wanted`, less those that
    validation holds out.
    """
    samples = prepared if wanted is None else min(prepared, wanted)
    return samples if fraction is None else samples - held_out(samples, fraction)


def cut(samples: int, most: int) -> list[tuple[int, int]]:
    """Cuts 0..samples into the fewest pieces of at most `most`, as even as can be: [(start, stop),
    ...].
    """
    pieces = -(-samples // most)
    return [(samples * i // pieces, samples * (i + 1) // pieces) for i in range(pieces)]


def smallest_micro_batch(samples: int, global_batch_size: int, most: int, steps: int) -> int:
    """Samples of the smallest micro-batch of a run: of its full steps, and of the last one of an
    epoch, which may be of fewer.

    samples: those trained on; most: of a micro-batch; steps: of the whole run. The number of ranks
    does not matter: a step is cut into the same pieces for all.
    """
    full, rest = divmod(samples, global_batch_size)
    sizes = [global_batch_size] if full else []
    if rest and steps > full:
        sizes.append(rest)
    return min(stop - start for size in sizes for start, stop in cut(size, most))
