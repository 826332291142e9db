"""Micro-batches that BatchNorm cannot normalise: one sample, and maps of one pixel.

Imports trainer.config alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.config import steps
from trainer.config.data import ImageData, SmallPictures
from trainer.config.models.layers import Model
from trainer.config.models.library import LibraryModel


def of_job(train: Mapping[str, Any]) -> str | None:
    """What is wrong with a job's micro-batches, as far as its settings alone tell: for data whose
    number is known, on one rank.

    train: the fields of a TrainConfig by name, those that are right by themselves.
    """
    data = train.get("data")
    if not isinstance(data, SmallPictures):
        return None
    return problem(train, data.available()[0], 1)


def problem(train: Mapping[str, Any], prepared: int, ranks: int) -> str | None:
    """Why BatchNorm would refuse a micro-batch of the run, and what to try; None where it would
    not, or only torch knows.

    prepared: train samples of the data as they were prepared. In a micro-batch of one sample a map
    of one pixel has one value a channel, which is its own mean: torch raises. Evaluations are not
    meant, which take the running mean.
    """
    data, model, batch, epochs = (
        train.get(name) for name in ("data", "model", "global_batch_size", "epochs")
    )
    if (
        not isinstance(data, ImageData)
        or not isinstance(model, Model)
        or batch is None
        or epochs is None
    ):
        return None
    if only_torch_knows(train) or model.normalised_pixels(data.pictures()) != 1:
        return None
    samples = steps.trained_on(prepared, data.wanted()[0], data.validation)
    if not is_one_sample(train, samples, batch, ranks):
        return None
    return sentence(train, samples, ranks)


def only_torch_knows(train: Mapping[str, Any]) -> bool:
    """Whether the settings do not tell over which maps BatchNorm is: in a library's model, and
    where layers of it are frozen.
    """
    frozen = bool(train.get("freeze")) and bool(train.get("freeze_batch_norm"))
    return isinstance(train.get("model"), LibraryModel) or frozen


def sentence(train: Mapping[str, Any], samples: int, ranks: int) -> str:
    """What a user reads of a run with such a micro-batch."""
    batch, model, given = train["global_batch_size"], train["model"], train["data"].pictures()
    others = [size for size in (*range(batch - 1, 1, -1), *range(batch + 1, 2 * batch + 2))]
    near = next((size for size in others if not is_one_sample(train, samples, size, ranks)), None)
    hint = f"try {near}" if near is not None else "make train.micro_batch_size larger"
    return (
        f"{samples:,} train samples in batches of {batch} give a micro-batch of one sample, and"
        f" {model.name} on {given.height}x{given.width} pictures has BatchNorm over 1x1 maps, which"
        f" takes no single value a channel; {hint}"
    )


def is_one_sample(train: Mapping[str, Any], samples: int, batch: int, ranks: int) -> bool:
    """Whether a micro-batch of the run has one sample, in global batches of that size."""
    if train.get("parity"):
        most = -(-batch // train["parity_shards"])
    else:
        most = min(train.get("micro_batch_size") or -(-batch // ranks), batch)
    of_run = steps.total(steps.per_epoch(samples, batch), train["epochs"], train.get("max_steps"))
    return samples > 0 and steps.smallest_micro_batch(samples, batch, most, of_run) == 1
