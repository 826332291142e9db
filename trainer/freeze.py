"""Parameters that training leaves alone, by name; and BatchNorm that stays as it was trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Self

from torch import nn
from typing_extensions import override

from trainer.prepared.errors import DataError

MOST_SHOWN = 12


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Normalises by its running statistics in training, too, and never changes them."""

    @override
    def train(self, mode: bool = True) -> Self:
        return super().train(mode=False)


def names(parameters: Iterable[str], patterns: Sequence[str]) -> set[str]:
    """The parameters that `patterns` (with *, ?, []) name, the last one that matches deciding: `!`
    in front trains again.

    Raises DataError where a pattern matches nothing, or nothing is left to train.
    """
    every, frozen, idle = list(parameters), set[str](), []
    for pattern in patterns:
        matched = {name for name in every if fnmatchcase(name, pattern.removeprefix("!"))}
        idle += [] if matched else [f"'{pattern}'"]
        frozen = frozen - matched if pattern.startswith("!") else frozen | matched
    shown = ", ".join(every[:MOST_SHOWN]) + (
        f", ... ({len(every)} in all)" if len(every) > MOST_SHOWN else ""
    )
    if idle:
        raise DataError(
            f"train.freeze: {', '.join(idle)} matches no parameter of the model, which has {shown}"
        )
    if len(frozen) == len(every):
        last = every[-1].rpartition(".")[0]
        raise DataError(
            f"train.freeze: nothing is left to train; '!{last}.*' at its end trains the last layer"
        )
    return frozen


def apply(model: nn.Module, patterns: Sequence[str], *, batch_norm: bool) -> None:
    """Takes the parameters that `patterns` name out of training. batch_norm: BatchNorm layers whose
    weights they are keep their statistics too. Raises DataError.
    """
    if not patterns:
        return
    frozen = names((name for name, _ in model.named_parameters()), patterns)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    for name, module in model.named_modules():
        if batch_norm and type(module) is nn.BatchNorm2d and f"{name}.weight" in frozen:
            module.__class__ = FrozenBatchNorm2d  # in place: names, values and hooks stay
