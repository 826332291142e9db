"""The optimizers and learning-rate schedules by name; the rate is a closed form of the step, so
that nothing has to be restored.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from trainer.config.optim import (
    AdaDeltaOptimizer,
    AdaGradOptimizer,
    AdamOptimizer,
    AdamWOptimizer,
    OptimizerConfig,
    RMSPropOptimizer,
    ScheduleConfig,
    SGDOptimizer,
)
from trainer.config.run import TrainConfig
from trainer.guard import Undone

Groups = list[dict[str, Any]]

# fused: one kernel for all parameters, and it skips the update on the device where `found_inf` is
# set; where torch has none, or none for a GPU, Undone puts back what such an update did


def sgd(groups: Groups, config: SGDOptimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True
    )


def adam(groups: Groups, config: AdamOptimizer) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
    )


def adamw(groups: Groups, config: AdamWOptimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), eps=config.eps, fused=True
    )


class AdaGrad(Undone, torch.optim.Adagrad):
    pass


class RMSProp(Undone, torch.optim.RMSprop):
    pass


class AdaDelta(Undone, torch.optim.Adadelta):
    pass


def adagrad(groups: Groups, config: AdaGradOptimizer) -> torch.optim.Optimizer:
    return AdaGrad(groups, lr=config.lr, eps=config.eps)


def rmsprop(groups: Groups, config: RMSPropOptimizer) -> torch.optim.Optimizer:
    return RMSProp(groups, lr=config.lr, alpha=config.alpha, eps=config.eps)


def adadelta(groups: Groups, config: AdaDeltaOptimizer) -> torch.optim.Optimizer:
    return AdaDelta(groups, lr=config.lr, rho=config.rho, eps=config.eps)


OPTIMIZERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
    "adadelta": adadelta,
}


def build(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over `model`'s parameters."""
    return OPTIMIZERS[config.optimizer.name](
        parameter_groups(model, config.optimizer), config.optimizer
    )


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> Groups:
    """What is trained, in one group, or two: weights with decay, and biases and normalisation
    layers (all that has one dimension) without. Where the head has a rate of its own, its groups
    come after these, with their `lr_factor`.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.head_lr_factor == 1:
        return _by_decay([p for _, p in trained], config)
    last = tuple(f"{layer}." for layer in head(model))
    of_head = _by_decay([p for name, p in trained if name.startswith(last)], config)
    body = _by_decay([p for name, p in trained if not name.startswith(last)], config)
    return body + [{**group, "lr_factor": config.head_lr_factor} for group in of_head]


def _by_decay(parameters: list[nn.Parameter], config: OptimizerConfig) -> Groups:
    if config.decay_bias_and_norm:
        groups = [{"params": parameters, "weight_decay": config.weight_decay}]
    else:
        weights, rest = ([p for p in parameters if (p.ndim > 1) is many] for many in (True, False))
        groups = [
            {"params": weights, "weight_decay": config.weight_decay},
            {"params": rest, "weight_decay": 0.0},
        ]
    return [group for group in groups if group["params"]]


def head(model: nn.Module) -> list[str]:
    """The names of the layers that answer: the last linear layer or convolution, in the order of
    the modules, and the transposed convolutions after it, which bring its scores to the picture's
    size.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found = [name]
        elif isinstance(module, nn.ConvTranspose2d):
            found.append(name)
    return found


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next update; the last layer's may be a multiple of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def learning_rate(
    base: float, schedule: ScheduleConfig, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """The rate of step `step` (0 is the first) of `total_steps`.

    Warm-up, of all but one_cycle: linear from base / warmup_steps to base; then constant: base.
    step: base * gamma ** (epoch // every_epochs), epochs counted from the run's start. multistep:
    base * gamma ** (milestones that the epoch has reached). cosine: base / 2 * (1 + cos(pi * t)), t
    from 0 to 1 at the last step (Loshchilov & Hutter, arXiv:1608.03983, equation 5 without
    restarts). one_cycle: linear from about 0 to base at warmup_fraction, linear to 0 at the last
    step.
    """
    if schedule.name == "one_cycle":
        peak = schedule.warmup_fraction * (total_steps - 1)
        return base * (
            (step + 1) / (peak + 1)
            if step < peak
            else (total_steps - 1 - step) / (total_steps - 1 - peak)
        )
    warmup_steps = round(schedule.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule.name == "constant":
        return base
    if schedule.name == "step":
        return base * schedule.gamma ** (step // (steps_per_epoch * schedule.every_epochs))
    if schedule.name == "multistep":
        return base * schedule.gamma ** sum(
            step >= steps_per_epoch * epoch for epoch in schedule.milestones_epochs
        )
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return base / 2 * (1 + math.cos(math.pi * progress))


class Average:
    """The exponential moving average of a model's weights and buffers: `model` is a second model
    that holds it.

    average += (1 - d) * (now - average), d = min(decay, (1 + n) / (10 + n)) after n updates, so
    that the first steps are not held back by the weights that the run began with (TensorFlow's
    ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(requires_grad=False).eval()
        now, mine = list(model.state_dict().values()), list(self.model.state_dict().values())
        self.pairs = [(a, b) for a, b in zip(mine, now, strict=True) if a.is_floating_point()]
        # batches seen
        self.counters = [
            (a, b) for a, b in zip(mine, now, strict=True) if not a.is_floating_point()
        ]

    @torch.no_grad()
    def update(self, step: int, refused: Tensor) -> None:
        """After update number `step` (1 is the first). refused: float [], 1 where the update was
        refused; stays on the device.
        """
        weight = (1 - refused) * (1 - min(self.decay, step / (9 + step)))
        difference = torch._foreach_sub(
            [now for _, now in self.pairs], [mine for mine, _ in self.pairs]
        )
        torch._foreach_mul_(difference, weight)
        torch._foreach_add_([mine for mine, _ in self.pairs], difference)
        for mine, now in self.counters:
            mine.copy_(now)
