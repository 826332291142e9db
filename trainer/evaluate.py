"""Exact evaluation: contiguous unequal shards without padding, one confusion matrix summed over the ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import distributed, watchdog
from trainer.data.batches import Batches
from trainer.data.prepared import Split
from trainer.distributed import World


@dataclass(frozen=True)
class Evaluation:
    """loss: mean over samples. confusion: int64 [classes, classes], rows are the truth."""

    loss: float
    accuracy: float
    confusion: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, batches: Batches, world: World, *, num_classes: int, batch_size: int, precision: str
) -> Evaluation:
    """Evaluates the unwrapped model on every sample of `split` once. Collective: every rank calls it."""
    distributed.broadcast_buffers(model, world)
    bare = distributed.unwrap(model)
    training = bare.training
    bare.eval()
    samples = len(split.labels)
    begin, end = samples * world.rank // world.size, samples * (world.rank + 1) // world.size
    loss_sum = torch.zeros((), dtype=torch.float64, device=world.device)
    confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=world.device)
    for start in range(begin, end, batch_size):
        watchdog.alive()
        stop = min(start + batch_size, end)
        labels = torch.from_numpy(split.labels[start:stop]).to(world.device)
        images = batches.normalise(torch.from_numpy(split.images[start:stop]).to(world.device))
        with torch.autocast(world.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = bare(images)
        loss_sum += functional.cross_entropy(logits.float(), labels, reduction="sum")
        confusion += torch.bincount(labels * num_classes + logits.argmax(1), minlength=num_classes * num_classes)
    bare.train(training)
    confusion = distributed.total(confusion, world).view(num_classes, num_classes)
    seen = int(confusion.sum())
    assert seen == samples, f"evaluated {seen} of {samples} samples"
    return Evaluation(
        loss=float(distributed.total(loss_sum, world)) / samples,
        accuracy=int(confusion.diagonal().sum()) / samples,
        confusion=confusion,
    )
