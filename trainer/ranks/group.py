"""The process group: which rank this is, on which device, what the ranks agree on.

Reads torchrun's and our variables.
"""

from __future__ import annotations

import gc
import inspect
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from trainer.config.files.layout import Attempt, RunDir
from trainer.config.run import RunConfig
from trainer.ranks import watchdog


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


def name_of(device: torch.device) -> str:
    """What its maker calls it, as in `NVIDIA H100 80GB HBM3`; of a CPU that does not tell, its
    architecture.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        told = re.search(r"^model name\s*: *(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        told = None
    return told[1].strip() if told else platform.processor() or platform.machine()


def rank_from_environment() -> int:
    return int(os.environ.get("RANK", 0))


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus_of_a_rank() -> int:
    """Its share of the CPUs that all ranks of this node may use; at least one."""
    return max(
        1, cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    )


def prepared_from_environment() -> Path | None:
    """Where launch.node has copied the prepared data to, on this node's own disk."""
    return Path(os.environ["BATCHYARD_PREPARED"]) if "BATCHYARD_PREPARED" in os.environ else None


def attempt_from_environment(run: RunDir) -> Attempt:
    return run.attempt(os.environ.get("BATCHYARD_ATTEMPT", "manual-1"))


def say(line: str) -> None:
    """One line in this rank's log.

    A full disk stops nothing: the line waits in the stream for the next one.
    """
    with suppress(OSError):
        print(line, flush=True)


def kill_point(run: RunDir, point: str, step: int) -> None:
    """For tests and drills: kills this process where BATCHYARD_FAULT is `kill:<point>:<step>`, once
    in the life of the run.
    """
    if (
        os.environ.get("BATCHYARD_FAULT") == f"kill:{point}:{step}"
        and not run.killed(point, step).exists()
    ):
        run.killed(point, step).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def inject_fault(world: World, step: int, images: Tensor) -> None:
    """Does nothing, unless BATCHYARD_FAULT=kind:rank:step (exception, hang, nan) names this rank
    and step: for tests and drills.
    """
    kind, _, place = os.environ.get("BATCHYARD_FAULT", "").partition(":")
    if place != f"{world.rank}:{step}":
        return
    if kind == "exception":
        raise RuntimeError(f"BATCHYARD_FAULT={kind}:{place}")
    while kind == "hang":
        time.sleep(1)
    if kind == "nan":
        images.fill_(float("nan"))


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


def time_is_up(deadline: float | None, reserve_s: float) -> bool:
    """Whether the time limit is less than `reserve_s` seconds away. deadline: unix seconds; None:
    no limit.
    """
    return deadline is not None and time.time() > deadline - reserve_s


class Agreement:
    """Lets all ranks stop, or checkpoint, at the same step.

    Signals only set a flag. Every `interval` steps the ranks take the maximum of their flags over
    gloo, so that the device is never waited for. Rank 0 chooses the interval from its first steps:
    about 50 ms of work, at most 100 steps.
    """

    CHECK_EVERY_S = 0.05
    FIRST_STEPS = 8

    def __init__(
        self, world: World, checkpoint_every_min: float | None, reserve_s: Callable[[], float]
    ) -> None:
        """reserve_s: how long before the deadline all must stop; the longest of all
        ranks' counts.
        """
        self.world, self.reserve_s = world, reserve_s
        self.stop_requested = False
        self.checkpoint_every_s = 60 * checkpoint_every_min if checkpoint_every_min else None
        self.last_checkpoint = time.monotonic()
        self.interval = 1
        self.calls = 0
        self.started = 0.0

    def listen(self) -> None:
        """Takes over the signals.

        Before this, their default ends a rank at once: nothing would be lost yet.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._request_stop)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.stop_requested = True

    def __call__(self) -> tuple[bool, bool]:
        """Called once after each step. Returns (stop, checkpoint), equal on all ranks."""
        self.calls += 1
        if self.calls == 1:
            self.started = time.monotonic()  # the first step warms up and is not measured
        if self.calls % self.interval:
            return False, False
        now = time.monotonic()
        due = (
            self.checkpoint_every_s is not None
            and now - self.last_checkpoint > self.checkpoint_every_s
        )
        proposal = self.interval
        if self.calls == self.FIRST_STEPS:
            step_s = (now - self.started) / (self.calls - 1)
            proposal = max(1, min(100, int(self.CHECK_EVERY_S / max(step_s, 1e-6))))
        wanted = self.stop_requested or time_is_up(self.world.deadline, self.reserve_s())
        stop, checkpoint, self.interval = self._maximum(
            [wanted, due and self.world.rank == 0, proposal if self.world.rank == 0 else 0]
        )
        if checkpoint:
            self.last_checkpoint = now
        return bool(stop), bool(checkpoint)

    def _maximum(self, flags: Sequence[int | bool]) -> list[int]:
        values = torch.tensor([int(flag) for flag in flags], dtype=torch.int64)
        if self.world.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [int(value) for value in values]
