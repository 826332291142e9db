"""The same bits on any number of ranks: each shard of a step by itself, gradients and statistics
combined in the order of shards.

Floating-point sums depend on their order, so nothing here is ever summed by a collective: those
only move tensors about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.batches.batches import Step
from trainer.config.run import TrainConfig
from trainer.freeze import FrozenBatchNorm2d
from trainer.guard import Guard
from trainer.ranks.group import World

Gradients = Callable[[nn.Module, Step, TrainConfig, World, Guard, Tensor], None]


class InShardOrder:
    """Stands for `gradients` where `train.parity` is bitwise: called in the same way, with a model
    that is not under DDP.

    A step's chunks are its shards: at most `parity_shards`, the same for any number of ranks; shard
    s is rank s % world_size's in round s // world_size. A shard is one call of `gradients` as if
    there were no other rank, so kernels see the same shapes and dropout is seeded by the shard. A
    round adds the gradients of its shards in the order of ranks, which is that of shards: each rank
    one segment of the parameters. It costs no more traffic than a reduce-scatter, once a round, and
    the memory of one gradient and one segment beside the gradient itself.
    """

    def __init__(self, gradients: Gradients, model: nn.Module, world: World) -> None:
        self.gradients, self.alone = gradients, replace(world, size=1)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        segment = -(-sum(p.numel() for p in self.parameters) // world.size)
        # the memory of all gradients; row r: rank r's segment
        self.flat = torch.zeros(world.size, segment, device=world.device)
        # row r: this rank's segment of rank r's
        self.received = torch.empty_like(self.flat) if world.size > 1 else self.flat
        self.total = self.flat.new_zeros(segment)
        self.keep = keep_of_running_statistics(model)
        # batches seen
        self.counters = [
            b for m in updated(model) for b in m.buffers(recurse=False) if not b.is_floating_point()
        ]

    def __call__(
        self,
        model: nn.Module,
        step: Step,
        config: TrainConfig,
        world: World,
        guard: Guard,
        sums: Tensor,
    ) -> None:
        """Leaves the gradient of the mean loss over the step in `.grad`, and BatchNorm's
        statistics, equal on every rank.

        sums: float64 [3], gains what all shards add, on rank 0 alone. Collective.
        """
        micro_batches = step.micro_batches
        before, width = guard.buffers.clone(), len(guard.buffers)
        # a shard's BatchNorm statistics, then its sums
        rows = sums.new_zeros(len(micro_batches), width + len(sums))
        self.point_gradients_at_flat()
        # a sum that begins at +0 never becomes -0: to add the zeros of a rank without a shard
        # changes nothing
        self.total.zero_()
        for batch, row in zip(micro_batches, rows, strict=True):
            self.flat.zero_()
            if batch.chunk is not None:
                guard.buffers.zero_()
                alone = Step(step.number, [batch])
                self.gradients(model, alone, config, self.alone, guard, row[width:])
                # begun at zero, so this is momentum * (the shard's statistics)
                row[:width] = guard.buffers
            if world.size > 1:
                dist.all_to_all_single(self.received, self.flat)
            for of_rank in self.received:
                self.total += of_rank
        if world.size > 1:
            dist.all_gather_into_tensor(self.flat.view(-1), self.total)
        else:
            self.flat.copy_(self.total)

        shards = -(-micro_batches[0].global_samples // config.shard_size())
        rows = in_shard_order(rows, world)[:shards]
        guard.buffers.copy_(before)
        for statistics in rows[:, :width].float() if width else ():
            guard.buffers.mul_(self.keep).add_(statistics)
        for counter in self.counters:
            counter += shards - sum(batch.chunk is not None for batch in micro_batches)
        for row in rows if world.rank == 0 else ():
            sums += row[width:]

    def point_gradients_at_flat(self) -> None:
        """Each parameter's `.grad` becomes a view of `flat` in the parameter's own memory format,
        as fused optimizers want it.
        """
        position = 0
        for parameter in self.parameters:
            parameter.grad = torch.as_strided(
                self.flat, parameter.size(), parameter.stride(), position
            )
            position += parameter.numel()


def in_shard_order(rows: Tensor, world: World) -> Tensor:
    """[rounds, n] of each rank -> [rounds * world_size, n], the same on every rank; those without a
    shard come last.
    """
    if world.size == 1:
        return rows
    gathered = rows.new_empty(world.size * len(rows), rows.shape[1])
    dist.all_gather_into_tensor(gathered, rows)
    return gathered.view(world.size, *rows.shape).transpose(0, 1).flatten(0, 1)


def updated(model: nn.Module) -> list[nn.Module]:
    """The modules whose buffers training changes, in their order."""
    return [module for module in model.modules() if not isinstance(module, FrozenBatchNorm2d)]


def keep_of_running_statistics(model: nn.Module) -> Tensor:
    """What is left of each number in `guard.buffers` after one batch: 1 - momentum, float32 [n], in
    their order.
    """
    keep = [torch.zeros(0)]
    for module in updated(model):
        for name, buffer in module.named_buffers(recurse=False):
            assert isinstance(module, _BatchNorm) and module.momentum, (
                f"{name}: parity combines BatchNorm's buffers alone"
            )
            if buffer.is_floating_point():
                keep.append(
                    torch.full((buffer.numel(),), 1 - module.momentum, device=buffer.device)
                )
    return torch.cat(keep[1:] or keep)
