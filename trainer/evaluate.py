"""Exact evaluation: batches that do not depend on the ranks, one confusion matrix summed over these, losses in order."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed, watchdog
from trainer.data.batches import Batches
from trainer.data.prepared import Split
from trainer.distributed import World

TOP5_FROM_CLASSES = 11  # with ten classes or fewer, half of all guesses would be right
MOST_MISTAKES = 16
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Where a model computes in the run's precision."""
    if precision == "fp32":
        return nullcontext()  # autocast, off, costs a small step one part in a hundred
    return torch.autocast(device.type, DTYPES[precision])


@dataclass(frozen=True)
class Mistake:
    """A wrongly classified picture. sample: its number in the split; probability: of the predicted class, by softmax."""

    sample: int
    predicted: int
    probability: float


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over samples. confusion: int64 [classes, classes], rows are the truth. mistakes: the most confident first.

    accuracy_top5: None where there are ten classes or fewer.
    """

    loss: float
    accuracy: float
    accuracy_top5: float | None
    confusion: Tensor
    mistakes: list[Mistake]


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, batches: Batches, world: World, *, num_classes: int, batch_size: int, precision: str
) -> Evaluation:
    """Evaluates the unwrapped model on every sample of `split` once. Collective: every rank calls it."""
    distributed.broadcast_buffers(model, world)
    bare = distributed.unwrap(model)
    training = bare.training
    bare.eval()
    samples, device = len(split), world.device
    starts = range(0, samples, batch_size)
    begin, end = len(starts) * world.rank // world.size, len(starts) * (world.rank + 1) // world.size  # this rank's batches
    sums = torch.zeros(len(starts), 2, dtype=torch.float64, device=device)  # of each batch: loss, right among the first five
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
    mistakes = torch.full((MOST_MISTAKES, 3), -1.0, dtype=torch.float64, device=device)  # probability, sample, predicted
    for batch in range(begin, end):
        watchdog.alive()
        start = starts[batch]
        pixels, truth = split.read(start, min(start + batch_size, samples))
        labels = torch.from_numpy(truth).to(device)
        images = batches.normalise(torch.from_numpy(pixels).to(device))
        with autocast(precision, device):
            logits = bare(images).float()
        probability, predicted = logits.softmax(1).max(1)
        sums[batch, 0] = functional.cross_entropy(logits, labels, reduction="sum")
        if num_classes >= TOP5_FROM_CLASSES:
            sums[batch, 1] = (logits.topk(5, dim=1).indices == labels[:, None]).sum()
        confusion += torch.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
        number = torch.arange(start, start + len(labels), device=device)
        right = predicted == labels
        rows = torch.stack((torch.where(right, -1.0, probability).double(), number.double(), predicted.double()), dim=1)
        mistakes = most_confident(torch.cat((mistakes, rows)))
    bare.train(training)
    confusion = distributed.total(confusion, world).view(num_classes, num_classes)
    seen = int(confusion.sum())
    assert seen == samples, f"evaluated {seen} of {samples} samples"
    loss_sum, top5 = in_order(distributed.total(sums, world))
    worst = most_confident(torch.cat(distributed.gather(mistakes, world)))
    return Evaluation(
        loss=loss_sum / samples,
        accuracy=int(confusion.diagonal().sum()) / samples,
        accuracy_top5=top5 / samples if num_classes >= TOP5_FROM_CLASSES else None,
        confusion=confusion,
        mistakes=[Mistake(int(sample), int(guess), p) for p, sample, guess in worst.tolist() if p >= 0],
    )


def in_order(rows: Tensor) -> list[float]:
    """The sum of the rows of a [n, k], the first one first, so that it has the same bits for any number of ranks."""
    result = torch.zeros_like(rows[0])
    for row in rows:
        result += row
    return result.tolist()


def most_confident(rows: Tensor) -> Tensor:
    """The MOST_MISTAKES rows with the highest probability (column 0)."""
    return rows[rows[:, 0].topk(MOST_MISTAKES).indices]
