"""The process group: which rank this is, on which device, what the ranks agree on.

Reads torchrun's and our variables.
"""

from __future__ import annotations

import gc
import inspect
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.config.files.layout import Attempt, RunDir
from trainer.config.run import RunConfig
from trainer.ranks import watchdog
from trainer.ranks.environment import attempt_from_environment


@dataclass(frozen=True)
class World:
    """This rank among all ranks, and what only this attempt knows."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    run: RunDir
    attempt: Attempt
    deadline: float | None  # unix seconds at which the time limit ends the attempt


class NoGPU(RuntimeError):
    """The run was promised a GPU and this rank sees none."""


def start(config: RunConfig, run: RunDir) -> World:
    """Joins the process group (gloo; NCCL beside it where the run was promised GPUs).

    Raises NoGPU rather than train on a CPU in silence.
    """
    env = os.environ
    rank, local_rank, size = (
        int(env.get("RANK", 0)),
        int(env.get("LOCAL_RANK", 0)),
        int(env.get("WORLD_SIZE", 1)),
    )
    watchdog.start(attempt_from_environment(run), rank, config.execution.hang_limit_s)
    torch.set_num_threads(config.execution.threads_per_rank)
    on_gpu = config.execution.device == "cuda"
    if on_gpu and torch.cuda.device_count() <= local_rank:
        raise NoGPU(
            f"local rank {local_rank} was promised a GPU and sees {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not config.train.repeatable()
        torch.use_deterministic_algorithms(config.train.repeatable())
    if size > 1:
        if size == int(env.get("LOCAL_WORLD_SIZE", 1)):
            stay_on_loopback()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo", device_id=device if on_gpu else None
        )
    deadline = env.get("BATCHYARD_DEADLINE")
    return World(
        rank,
        local_rank,
        size,
        device,
        run,
        attempt_from_environment(run),
        float(deadline) if deadline else None,
    )


def stay_on_loopback() -> None:
    """Keeps gloo on this machine, unless the user names a network: by itself it asks for the
    machine's name, which need not resolve.
    """
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)


def finish(world: World) -> None:
    """Leaves the process group after all ranks have come here, and have let go of their models."""
    if world.size > 1:
        dist.barrier()
        gc.collect()  # a DDP is held by circles of its own
        dist.destroy_process_group()


def wrap(model: nn.Module, world: World) -> nn.Module:
    """DDP over the ranks; the model itself where there is no process group, as with one rank.

    Buffers are not broadcast at each forward: training reads batch statistics only, and
    `broadcast_buffers` below makes the running ones equal before they are read.
    """
    if not dist.is_initialized():
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    # torch 2.15 renamed broadcast_buffers and warns of the old name
    renamed = (
        "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    )
    no_broadcast = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return DistributedDataParallel(
        model, device_ids=ids, gradient_as_bucket_view=True, **no_broadcast
    )


def reduction(model: nn.Module, *, on: bool) -> AbstractContextManager[None]:
    """A context whose backward pass reduces the gradients over the ranks, or, off, adds to the
    local ones only.
    """
    return (
        model.no_sync() if not on and isinstance(model, DistributedDataParallel) else nullcontext()
    )


def unwrap(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Gives every rank the BatchNorm statistics of rank 0, which saw chunk 0 of every step."""
    if world.size > 1:
        for buffer in unwrap(model).buffers():
            dist.broadcast(buffer, src=0)


def gather(values: Tensor, world: World) -> list[Tensor]:
    """Every rank's `values` in the order of ranks, on the CPU, the same list on each rank."""
    values = values.detach().cpu()
    if world.size == 1:
        return [values]
    gathered = [torch.empty_like(values) for _ in range(world.size)]
    dist.all_gather(gathered, values)
    return gathered


def from_rank_0(value: Any, world: World) -> Any:
    """Rank 0's `value` (anything that can be pickled) on every rank. Collective."""
    box = [value]
    if world.size > 1:
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def total(values: Tensor, world: World) -> Tensor:
    """The sum over ranks, added in the order of ranks (so that it has the same bits every time)."""
    gathered = gather(values, world)
    result = gathered[0].clone()
    for other in gathered[1:]:
        result += other
    return result
