"""The optimizers and learning-rate schedules by name; the rate is a closed form of the step, so that nothing has to be restored."""

from __future__ import annotations

import math

import torch
from torch import nn

from trainer.config.run import ScheduleConfig, SGDOptimizer, TrainConfig


def sgd(model: nn.Module, config: SGDOptimizer) -> torch.optim.Optimizer:
    # fused: one kernel for all parameters, and it skips the update on the device where `found_inf` is set
    return torch.optim.SGD(
        model.parameters(), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov,
        weight_decay=config.weight_decay, fused=True,
    )


OPTIMIZERS = {"sgd": sgd}


def build(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters."""
    return OPTIMIZERS[config.optimizer.name](model, config.optimizer)


def learning_rate(base: float, schedule: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """The rate of step `step` (0 is the first) of `total_steps`.

    cosine: linear from base / warmup_steps to base, then base / 2 * (1 + cos(pi * t)), t from 0 to 1 at the last step
    (Loshchilov & Hutter, arXiv:1608.03983, equation 5 without restarts).
    """
    if schedule.name == "constant":
        return base
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return base / 2 * (1 + math.cos(math.pi * progress))
