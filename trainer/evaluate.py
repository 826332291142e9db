"""Exact evaluation: batches that do not depend on the ranks, whole numbers summed over these,
losses in order.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer import tasks
from trainer.batches.batches import Batches
from trainer.config.files.json_files import finite_or_none
from trainer.config.run import TrainConfig
from trainer.prepared.arrays import Split
from trainer.ranks import group, watchdog
from trainer.ranks.group import World
from trainer.tasks import Evaluation

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Where a model computes in the run's precision."""
    if precision == "fp32":
        return nullcontext()  # autocast, off, costs a small step one part in a hundred
    return torch.autocast(device.type, DTYPES[precision])


@dataclass(frozen=True)
class EvaluationSet:
    """What a model is evaluated on."""

    split: Split
    num_classes: int
    batch_size: int


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: EvaluationSet,
    batches: Batches,
    world: World,
    config: TrainConfig,
) -> Evaluation:
    """Evaluates the unwrapped model on every sample of `data` once.

    Collective: every rank calls it.

    Where an output is not finite, no figure of the evaluation is: an argmax of NaN would be an
    accuracy like any other.
    """
    group.broadcast_buffers(model, world)
    bare = group.unwrap(model)
    training = bare.training
    bare.eval()
    split, batch_size = data.split, data.batch_size
    samples, device, task = len(split), world.device, tasks.of(config)
    starts = range(0, samples, batch_size)
    # this rank's batches
    begin, end = (
        len(starts) * world.rank // world.size,
        len(starts) * (world.rank + 1) // world.size,
    )
    # of each batch, the sum over its samples
    losses = torch.zeros(len(starts), 1, dtype=torch.float64, device=device)
    height, width = split.images.shape[2:]
    tally, seen = (
        task.tally(data.num_classes, samples, (height, width), device),
        torch.zeros((), dtype=torch.int64),
    )
    # samples with such an output; read once, at the end
    not_finite = torch.zeros((), dtype=torch.int64, device=device)
    for batch in range(begin, end):
        watchdog.alive()
        start = starts[batch]
        pixels, truth = split.read(start, min(start + batch_size, samples))
        labels = torch.from_numpy(truth).to(device)
        images = batches.normalise(torch.from_numpy(pixels).to(device))
        with autocast(config.precision, device):
            outputs = bare(images).float()
        losses[batch, 0] = task.loss(outputs, labels, config)
        tally.add(outputs, labels, start)
        not_finite += (~torch.isfinite(outputs)).flatten(1).any(1).sum()
        seen += len(labels)
    bare.train(training)
    seen, not_finite = group.total(torch.stack((seen, not_finite.cpu())), world)
    assert seen == samples, f"evaluated {int(seen)} of {samples} samples"
    (loss_sum,) = in_order(group.total(losses, world))
    result = Evaluation(finite_or_none(loss_sum / samples), **tally.over_ranks(world))
    return result.without_figures(int(not_finite)) if not_finite else result


def in_order(rows: Tensor) -> list[float]:
    """The sum of the rows of a [n, k], the first one first, so that it has the same bits for any
    number of ranks.
    """
    result = torch.zeros_like(rows[0])
    for row in rows:
        result += row
    return result.tolist()
