"""What all ranks agree on without waiting for one another: to stop, and when."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from types import FrameType

import torch
import torch.distributed as dist

from trainer.ranks.group import World


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
