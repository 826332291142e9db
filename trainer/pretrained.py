"""Weights that a run begins with, laid over a fresh model's; tensors that do not fit are named, all of them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainer import checkpoint, freeze, models, optim
from trainer.config.layout import RunDir, read_json
from trainer.config.run import TrainConfig
from trainer.config.weights import Weights
from trainer.data.raw import DataError

MOST_SHOWN = 20


def load_for(run: RunDir, weights: Weights) -> tuple[str, dict[str, Tensor]]:
    """(where they come from, a state dict on the CPU) for a run that begins. Raises DataError."""
    if weights.run is None:
        return str(weights), read(Path(read_json(run.data_record)["weights"]["path"]))
    return of_run(RunDir(run.path.parent / weights.run))


def of_run(run: RunDir) -> tuple[str, dict[str, Tensor]]:
    """The best checkpoint of another run, where it chose one, else its last. Raises DataError."""
    try:
        found, _ = checkpoint.find(run, "best" if (run.checkpoints / "best").is_symlink() else "latest")
    except (checkpoint.NoCheckpoint, checkpoint.NewerCheckpoint) as error:
        raise DataError(f"train.weights.run: {error}") from None
    return f"{run.run_id} ({found.path.name})", found.weights


def read(path: Path) -> dict[str, Tensor]:
    """A state dict that torch.save or safetensors wrote, alone or as `state_dict` or `model` of a checkpoint; nothing in the file
    is run. Raises DataError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"train.weights: {path} holds no weights that torch loads: {reason}") from None
    for key in ("state_dict", "model"):
        found = found[key] if isinstance(found, Mapping) and isinstance(found.get(key), Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise DataError(f"train.weights: {path} holds no state dict (names and tensors)")
    return {name.removeprefix("module."): value for name, value in found.items()}


def lay_over(state: Mapping[str, Tensor], found: Mapping[str, Tensor], new: Sequence[str]) -> list[str]:
    """Copies `found` into `state`, a model's state dict, but for the layers `new`. Returns the names that the model has no use for.

    Raises DataError that names every tensor that is missing or has another shape; then nothing is copied.
    """
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(f"{layer}." for layer in new))}
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}  # weights of 2017 lack them
    wrong = [
        f"{name}: {list(found[name].shape)}, the model's is {list(tensor.shape)}" if name in found else f"{name}: is missing"
        for name, tensor in wanted.items()
        if (name in found or name not in counters) and (name not in found or found[name].shape != tensor.shape)
    ]
    if wrong:
        more = [f"and {len(wrong) - MOST_SHOWN} more"] if len(wrong) > MOST_SHOWN else []
        lines = "\n  ".join([*wrong[:MOST_SHOWN], *more])
        raise DataError(f"train.weights: {len(wrong)} of {len(wanted)} tensors do not fit the model:\n  {lines}")
    for name, tensor in wanted.items():
        if name in found and not tensor.is_meta:
            tensor.copy_(found[name])
    return sorted(set(found) - set(state))


def check(config: TrainConfig, classes: int, found: Mapping[str, Tensor] | None) -> None:
    """Whether weights and frozen names fit the model, which is built without memory. Raises DataError and ValueError."""
    given = config.data.pictures()
    model = models.build_on_meta(config.model, classes, given.channels, given[1:3])
    freeze.apply(model, config.freeze, config.freeze_batch_norm)
    if found is not None and config.weights is not None:
        lay_over(model.state_dict(), found, optim.head(model) if config.weights.head == "new" else [])
