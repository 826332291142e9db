"""Weights that a run begins with, laid over a fresh model's; tensors that do not fit are named, all
of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import freeze, models, optim
from trainer.checkpoints import files
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.run import TrainConfig
from trainer.config.weights import Weights
from trainer.prepared.errors import DataError
from trainer.weights import state_dict

MOST_SHOWN, MOST_NAMES = 20, 12


class LaidOver(NamedTuple):
    """unused: the names that the model has no use for; prefix: what was left out before every name
    of the file.
    """

    unused: list[str]
    prefix: str


def load_for(run: RunDir, weights: Weights) -> tuple[str, dict[str, Tensor]]:
    """(where they come from, a state dict on the CPU) for a run that begins. Raises DataError."""
    if weights.run is None:
        return str(weights), state_dict.read(Path(read_json(run.data_record)["weights"]["path"]))
    return of_run(RunDir(run.path.parent / weights.run))


def of_run(run: RunDir) -> tuple[str, dict[str, Tensor]]:
    """The best checkpoint of another run, where it chose one, else its last. Raises DataError."""
    try:
        found, _ = files.find(run, "best" if (run.checkpoints / "best").is_symlink() else "latest")
    except (files.NoCheckpoint, files.NewerCheckpoint) as error:
        raise DataError(f"train.weights.run: {error}") from None
    return f"{run.run_id} ({found.path.name})", found.weights


def lay_over(
    state: Mapping[str, Tensor], found: Mapping[str, Tensor], new: Sequence[str]
) -> LaidOver:
    """Copies `found` into `state`, a model's state dict, but for the layers `new`.

    Raises DataError that names every tensor that is missing, has another shape or is not finite;
    then nothing is copied.
    """
    wanted = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(tuple(f"{layer}." for layer in new))
    }
    # weights of 2017 lack them
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    found, prefix = state_dict.without_prefix(
        found, {name: wanted[name] for name in wanted if name not in counters}
    )
    unused = [name for name in found if name not in state]
    wrong = [
        (
            f"{name}: {list(found[name].shape)}, the model's is {list(tensor.shape)}"
            if name in found
            else f"{name}: is missing"
        )
        for name, tensor in wanted.items()
        if (name in found or name not in counters)
        and (name not in found or found[name].shape != tensor.shape)
    ]
    if wrong:
        lines = "".join(f"\n  {line}" for line in shown(wrong))
        there = (
            f"\n  names that the model has not: {', '.join(shown(unused, MOST_NAMES))}"
            if unused
            else ""
        )
        raise DataError(
            f"train.weights: {len(wrong)} of {len(wanted)} tensors do not fit the"
            f" model:{lines}{there}"
        )
    if odd := [name for name in wanted if name in found and not is_finite(found[name])]:
        lines = "".join(f"\n  {line}" for line in shown(odd))
        raise DataError(
            f"train.weights: {len(odd)} of {len(wanted)} tensors have numbers that are not"
            f" finite:{lines}"
        )
    for name, tensor in wanted.items():
        if name in found and not tensor.is_meta:
            tensor.copy_(found[name])
    return LaidOver(sorted(unused), prefix)


def shown(lines: Sequence[str], most: int = MOST_SHOWN) -> list[str]:
    """The first lines, and how many more there are."""
    return [*lines[:most], *([f"and {len(lines) - most} more"] if len(lines) > most else [])]


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; whole numbers always."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.float()).all())


def check(config: TrainConfig, classes: int, found: Mapping[str, Tensor] | None) -> None:
    """Whether weights and frozen names fit the model, which is built without memory.

    Raises DataError and ValueError.
    """
    given = config.data.pictures()
    model = models.build_on_meta(config.model, classes, given.channels, given[1:3])
    freeze.apply(model, config.freeze, batch_norm=config.freeze_batch_norm)
    if found is not None and config.weights is not None:
        lay_over(
            model.state_dict(), found, optim.head(model) if config.weights.head == "new" else []
        )
