"""`train.optimizer` and `train.schedule`."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config.strict import Strict


class Optimizer(Strict):
    """What every optimizer takes."""

    lr: float = Field(gt=0)
    head_lr_factor: float = Field(
        1.0,
        gt=0,
        description="the rate of the last layer, of fcn of the last two, is lr times this",
    )
    decay_bias_and_norm: bool = Field(
        default=True, description="false: weight decay leaves biases and normalisation layers alone"
    )


class SGDOptimizer(Optimizer):
    """torch.optim.SGD."""

    name: Literal["sgd"]
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true takes a momentum above 0, as in momentum: 0.9")
        return self


class AdamOptimizer(Optimizer):
    """torch.optim.Adam: weight decay is added to the gradient."""

    name: Literal["adam"]
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field(
        [0.9, 0.999], min_length=2, max_length=2
    )
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class AdamWOptimizer(AdamOptimizer):
    """torch.optim.AdamW: weight decay apart from the gradient (arXiv:1711.05101)."""

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0)


class AdaGradOptimizer(Optimizer):
    """torch.optim.Adagrad (Duchi, Hazan, Singer 2011)."""

    name: Literal["adagrad"]
    eps: float = Field(1e-10, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class RMSPropOptimizer(Optimizer):
    """torch.optim.RMSprop, without momentum (Hinton, Neural Networks for Machine Learning, lecture
    6).
    """

    name: Literal["rmsprop"]
    alpha: float = Field(
        0.99, ge=0, lt=1, description="how much of the squared gradients' average is kept"
    )
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class AdaDeltaOptimizer(Optimizer):
    """torch.optim.Adadelta (Zeiler, arXiv:1212.5701), whose own step is that of lr 1."""

    name: Literal["adadelta"]
    rho: float = Field(0.9, ge=0, lt=1, description="how much of both averages is kept")
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class Schedule(Strict):
    """What every schedule but one_cycle takes."""

    warmup_epochs: float = Field(
        0.0, ge=0, description="linear warm-up to lr over so many epochs, parts of one too"
    )


class ConstantSchedule(Schedule):
    """The learning rate as given, after the warm-up."""

    name: Literal["constant"]


class CosineSchedule(Schedule):
    """Linear warm-up, then half a cosine to zero at the last step (Loshchilov & Hutter,
    arXiv:1608.03983).
    """

    name: Literal["cosine"]


class StepSchedule(Schedule):
    """The rate times gamma after every so many epochs (torch.optim.lr_scheduler.StepLR)."""

    name: Literal["step"]
    every_epochs: int = Field(ge=1)
    gamma: float = Field(0.1, gt=0, lt=1)


class MultiStepSchedule(Schedule):
    """The rate times gamma at each of these epochs (torch.optim.lr_scheduler.MultiStepLR)."""

    name: Literal["multistep"]
    milestones_epochs: list[Annotated[int, Field(ge=1)]] = Field(
        min_length=1, description="ascending"
    )
    gamma: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(a >= b for a, b in pairwise(self.milestones_epochs)):
            raise ValueError(f"milestones_epochs ascend, found {self.milestones_epochs}")
        return self


class OneCycleSchedule(Strict):
    """Linear from 0 to lr over the first part, linear back to 0 at the last step (Smith,
    arXiv:1708.07120).
    """

    name: Literal["one_cycle"]
    warmup_fraction: float = Field(0.3, gt=0, lt=1, description="of all steps")


OptimizerConfig = Annotated[
    SGDOptimizer
    | AdamOptimizer
    | AdamWOptimizer
    | AdaGradOptimizer
    | RMSPropOptimizer
    | AdaDeltaOptimizer,
    Field(discriminator="name"),
]
ScheduleConfig = Annotated[
    ConstantSchedule | CosineSchedule | StepSchedule | MultiStepSchedule | OneCycleSchedule,
    Field(discriminator="name"),
]
