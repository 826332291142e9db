"""What a run learns, a few functions for each task: the loss, what is counted, the result.

The loop and the sum over ranks are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config.run import TrainConfig
from trainer.config.tables import LinearData
from trainer.prepared.arrays import Prepared
from trainer.prepared.masks import VOID
from trainer.ranks import group
from trainer.ranks.group import World

TOP5_FROM_CLASSES = 11  # with ten classes or fewer, half of all guesses would be right
MOST_MISTAKES = 16
FIRST, FROM_ALL_OVER = 6, 6  # samples of a split whose predictions a person looks at


@dataclass(frozen=True)
class Prediction:
    """The class that a picture is taken for. sample: its number in the split; probability: of that
    class, by softmax.
    """

    sample: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over samples. metrics: by name, 0 to 1, in the order in which they are told:
    accuracy, and accuracy_top5 where there are more than ten classes; of masks the accuracy of
    pixels, and mean_iou. confusion: int64 [classes, classes], of pictures or of pixels, rows are
    the truth; None where there are no classes. predictions: of the first pictures, and of some from
    all over; mistakes: the most confident first. predicted: some masks by the number of the sample,
    uint8 [H, W].

    not_finite: how many samples had an output that is not finite. With one such sample loss and
    metrics are None, and nothing is shown. The loss alone is None where finite outputs gave an
    infinite one.
    """

    loss: float | None
    metrics: dict[str, float | None] = field(default_factory=dict)
    confusion: Tensor | None = None
    predictions: list[Prediction] = field(default_factory=list)
    mistakes: list[Prediction] = field(default_factory=list)
    predicted: dict[int, Tensor] | None = None
    not_finite: int = 0

    def without_figures(self, not_finite: int) -> Evaluation:
        """This evaluation, of which `not_finite` samples had outputs that are not finite: the same
        metrics, all of them None.
        """
        shown = None if self.predicted is None else dict[int, Tensor]()
        return Evaluation(None, dict.fromkeys(self.metrics), predicted=shown, not_finite=not_finite)


class Tally:
    """What one rank counts in an evaluation beside the loss: of numbers nothing."""

    def __init__(
        self, num_classes: int, samples: int, in_size: tuple[int, int], device: torch.device
    ) -> None:
        self.num_classes, self.samples, self.device = num_classes, samples, device
        self.shown: list[int] = []  # samples whose predictions a person looks at

    def add(self, outputs: Tensor, labels: Tensor, start: int) -> None:
        """Counts a batch, float32 outputs and their labels; `start` is the number of its first
        sample in the split.
        """

    def over_ranks(self, world: World) -> dict[str, Any]:
        """What all ranks counted, as fields of Evaluation. Collective."""
        return {}

    def shown_in(self, start: int, size: int) -> list[tuple[int, int]]:
        """Of the samples that are shown, those in a batch: (which of them, where in the batch)."""
        return [
            (i, number - start)
            for i, number in enumerate(self.shown)
            if start <= number < start + size
        ]


class ClassTally(Tally):
    """The confusion matrix, the right ones among the first five, some predictions, and the most
    confident mistakes; exact over ranks.
    """

    def __init__(
        self, num_classes: int, samples: int, in_size: tuple[int, int], device: torch.device
    ) -> None:
        super().__init__(num_classes, samples, in_size, device)
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.top5 = torch.zeros((), dtype=torch.int64, device=device)
        # the first ones alone may be of one class
        self.shown = sorted({*range(min(FIRST, samples)), *all_over(samples)})
        # predicted, probability
        self.predictions = torch.zeros(len(self.shown), 2, dtype=torch.float64, device=device)
        # probability, sample, predicted
        self.mistakes = torch.full((MOST_MISTAKES, 3), -1.0, dtype=torch.float64, device=device)

    def add(self, outputs: Tensor, labels: Tensor, start: int) -> None:
        probability, predicted = outputs.softmax(1).max(1)
        if self.num_classes >= TOP5_FROM_CLASSES:
            self.top5 += (outputs.topk(5, dim=1).indices == labels[:, None]).sum()
        self.confusion += torch.bincount(
            labels * self.num_classes + predicted, minlength=self.num_classes**2
        )
        number = torch.arange(start, start + len(labels), device=self.device)
        right = predicted == labels
        rows = torch.stack(
            (torch.where(right, -1.0, probability).double(), number.double(), predicted.double()),
            dim=1,
        )
        self.mistakes = most_confident(torch.cat((self.mistakes, rows)))
        for i, at in self.shown_in(start, len(labels)):
            self.predictions[i] = torch.stack((predicted[at].double(), probability[at].double()))

    def over_ranks(self, world: World) -> dict[str, Any]:
        confusion = group.total(self.confusion, world).view(self.num_classes, self.num_classes)
        metrics = {"accuracy": int(confusion.diagonal().sum()) / self.samples}
        if self.num_classes >= TOP5_FROM_CLASSES:
            metrics["accuracy_top5"] = int(group.total(self.top5, world)) / self.samples
        worst = most_confident(torch.cat(group.gather(self.mistakes, world)))
        mistakes = [
            Prediction(int(sample), int(guess), p) for p, sample, guess in worst.tolist() if p >= 0
        ]
        # zero where they are another rank's
        shown = group.total(self.predictions, world).tolist()
        predictions = [
            Prediction(sample, int(guess), p)
            for sample, (guess, p) in zip(self.shown, shown, strict=True)
        ]
        return {
            "metrics": metrics,
            "confusion": confusion,
            "predictions": predictions,
            "mistakes": mistakes,
        }


class MaskTally(Tally):
    """The confusion matrix of all pixels that have a class, exact over ranks, and some masks from
    all over the split.
    """

    def __init__(
        self, num_classes: int, samples: int, in_size: tuple[int, int], device: torch.device
    ) -> None:
        super().__init__(num_classes, samples, in_size, device)
        self.confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self.shown = all_over(samples)  # neighbours are often of one scene
        # zero where it is another rank's
        self.predicted = torch.zeros(len(self.shown), *in_size, dtype=torch.uint8, device=device)

    def add(self, outputs: Tensor, labels: Tensor, start: int) -> None:
        predicted, known = outputs.argmax(1), labels != VOID
        pairs = labels[known].long() * self.num_classes + predicted[known]
        self.confusion += torch.bincount(pairs, minlength=self.num_classes**2)
        for i, at in self.shown_in(start, len(labels)):
            self.predicted[i] = predicted[at].to(torch.uint8)

    def over_ranks(self, world: World) -> dict[str, Any]:
        confusion = group.total(self.confusion, world).view(self.num_classes, self.num_classes)
        present = [value for value in iou(confusion) if value is not None]
        pixels = max(1, int(confusion.sum()))
        metrics = {
            "accuracy": int(confusion.diagonal().sum()) / pixels,
            "mean_iou": sum(present) / max(1, len(present)),
        }
        predicted = dict(zip(self.shown, group.total(self.predicted, world), strict=True))
        return {"metrics": metrics, "confusion": confusion, "predicted": predicted}


def all_over(samples: int) -> list[int]:
    """Some numbers of samples, at equal distances, the first one among them."""
    return sorted({samples * i // FROM_ALL_OVER for i in range(FROM_ALL_OVER)})


def iou(confusion: Tensor) -> list[float | None]:
    """Of each class the pixels that are rightly its over those that are its by truth or prediction;
    None: the truth has none.
    """
    right, truth, predicted = (
        t.tolist() for t in (confusion.diagonal(), confusion.sum(1), confusion.sum(0))
    )
    return [r / (t + p - r) if t else None for r, t, p in zip(right, truth, predicted, strict=True)]


def most_confident(rows: Tensor) -> Tensor:
    """The MOST_MISTAKES rows with the highest probability (column 0)."""
    return rows[rows[:, 0].topk(MOST_MISTAKES).indices]


def class_loss(
    outputs: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
) -> Tensor:
    """The cross-entropy of float32 [n, classes] and int64 [n]."""
    return functional.cross_entropy(
        outputs, labels, reduction=reduction, label_smoothing=label_smoothing
    )


def right_classes(outputs: Tensor, labels: Tensor) -> Tensor:
    """How many samples are right, float32 []."""
    return (outputs.argmax(1) == labels).sum().float()


def mask_loss(
    outputs: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
) -> Tensor:
    """The mean cross-entropy over a picture's pixels that have a class (zero where none has), of
    float32 [n, classes, H, W] and uint8 [n, H, W].
    """
    losses = functional.cross_entropy(
        outputs, labels.long(), reduction="none", ignore_index=VOID, label_smoothing=label_smoothing
    )
    losses = losses.flatten(1).sum(1) / (labels != VOID).flatten(1).sum(1).clamp(min=1)
    return losses.sum() if reduction == "sum" else losses


def right_pixels(outputs: Tensor, labels: Tensor) -> Tensor:
    """The sum over pictures of the right share of the pixels that have a class, float32 []."""
    known = labels != VOID
    right = (outputs.argmax(1) == labels) & known
    return (right.flatten(1).sum(1) / known.flatten(1).sum(1).clamp(min=1)).sum()


def squared_loss(
    outputs: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "sum",
) -> Tensor:
    """The mean over targets of the squared error, or half of it, of float32 [n, targets] and [n,
    targets].
    """
    losses = (outputs - labels).square().mean(1)
    if config.loss == "half_squared_error":
        losses = losses / 2
    return losses.sum() if reduction == "sum" else losses


class Task(NamedTuple):
    """The functions of a task. loss: a sample's ("none": float32 [n]), or the sum over the samples
    ("sum": float32 []); right: how many samples are right, float32 [], None where none is right or
    wrong; tally: what evaluations count.
    """

    loss: Callable[..., Tensor]
    right: Callable[[Tensor, Tensor], Tensor] | None
    tally: type[Tally]


TASKS = {
    "classification": Task(class_loss, right_classes, ClassTally),
    "regression": Task(squared_loss, None, Tally),
    "segmentation": Task(mask_loss, right_pixels, MaskTally),
}


def of(config: TrainConfig) -> Task:
    """The data say what there is to learn."""
    return TASKS[config.data.task]


def linear_fit(model: nn.Module, data: Prepared, config: TrainConfig) -> dict[str, Any] | None:
    """What a regression by one linear layer found, None of any other model. Worked out in float64.

    w, b, their true values where the data were made by some, the 2-norm of w; train_loss: of the
    train rows; least_train_loss: what ordinary least squares with an intercept reach there, the
    least that any w and b can.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if config.data.task != "regression" or len(layers) != 1:
        return None
    x, y = (
        a.reshape(len(a), -1).astype(np.float64)
        for a in data.splits["train"].read(0, len(data.splits["train"]))
    )
    w, b = (
        layers[0].weight.detach().cpu().double().numpy(),
        layers[0].bias.detach().cpu().double().numpy(),
    )
    with_ones = np.concatenate((x, np.ones((len(x), 1))), axis=1)
    best = with_ones @ np.linalg.lstsq(with_ones, y, rcond=None)[0]

    def loss(predicted: np.ndarray) -> float:
        return float(squared_loss(torch.from_numpy(predicted), torch.from_numpy(y), config)) / len(
            y
        )

    found = {"w": w[0].tolist(), "b": float(b[0]), "norm_of_w": float(np.linalg.norm(w))}
    if isinstance(config.data, LinearData):
        true = (
            config.data.w
            if isinstance(config.data.w, list)
            else [config.data.w] * config.data.features
        )
        found |= {"true_w": true, "true_b": config.data.b}
    return {**found, "train_loss": loss(x @ w.T + b), "least_train_loss": loss(best)}


def told_fit(fit: dict[str, Any]) -> str:
    """`linear_fit` in a line: up to five weights, and the norm of more."""

    def line(name: str, prefix: str) -> str:
        w = fit[f"{prefix}w"]
        weights = (
            f"{np.round(w, 4).tolist()}" if len(w) <= 5 else f"of norm {np.linalg.norm(w):.4f}"
        )
        return f"{name} w {weights} b {fit[f'{prefix}b']:.4f}"

    true = f", {line('true', 'true_')}" if "true_w" in fit else ""
    return (
        f"{line('learnt', '')}{true}; train loss {fit['train_loss']:.4g}, the least there is"
        f" {fit['least_train_loss']:.4g}"
    )
