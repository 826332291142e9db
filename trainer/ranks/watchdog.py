"""Notices that this rank makes no progress. Imports no torch.

One thread a rank writes the rank's heartbeat every few seconds. After `execution.hang_limit_s`
without a sign of progress it writes the Python stacks of all threads and the rank's evidence, waits
for the other ranks' watchdogs to do the same, and ends the process. Signs of progress are a step
and a batch of an evaluation; start-up, data, checkpoint and the first step (where torch.compile
works) have the same limit, each from the last sign on. It cannot see a thread that holds Python's
lock in native code for ever: such a rank's heartbeat stops, which the other ranks' watchdogs and
`batchyard why` tell.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.config.files.json_files import write_json
from trainer.config.files.layout import Attempt

TICK_S = 1.0
HEARTBEAT_S = 5.0
LINGER_S = 10.0  # for the other ranks, whose watchdogs may be a tick or a heartbeat behind

TRAINER = Path(__file__).parents[1]
# Where a rank is, by the outermost of these files or folders on its stack.
PHASES = {
    "trainer/evaluate.py": "evaluation",
    "trainer/checkpoints/": "checkpoint",
    "trainer/output/tracking.py": "logging",
    "trainer/batches/": "data",
    "trainer/prepared/": "data",
}


class Watchdog(threading.Thread):
    """What the main thread tells: `step`, the steps done (None before the first), and `signs`, a
    count of signs of progress.
    """

    def __init__(self, attempt: Attempt, rank: int, limit_s: float | None) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.attempt, self.rank, self.limit_s = attempt, rank, limit_s
        self.step: int | None = None
        self.signs = 0
        self.since = time.time()  # the last sign, as the heartbeat tells it

    def run(self) -> None:
        tick_s = min(TICK_S, self.limit_s / 10) if self.limit_s else TICK_S
        seen, idle_s, now, written = self.signs, 0.0, time.monotonic(), 0.0
        while True:
            time.sleep(tick_s)
            before, now = now, time.monotonic()
            if self.signs != seen:
                seen, idle_s, self.since = self.signs, 0.0, time.time()
            else:
                # The ticks of a suspended job (SIGSTOP, Slurm's SUSPEND) stop with it: such a gap
                # counts as two ticks at most.
                idle_s += min(now - before, 2 * tick_s)
            if now - written > min(HEARTBEAT_S, 5 * tick_s):
                written = now
                self.write_heartbeat()
            if self.limit_s and (idle_s > self.limit_s or self.attempt.hang.exists()):
                self.end(idle_s)

    def look(self) -> dict[str, Any]:
        """Where the main thread is now."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        found = place([*traceback.walk_stack(frame)][::-1])
        if found["phase"] == "start-up" and self.step is not None:  # outside the loop, after it
            found["phase"] = "shutdown"
        return found

    def write_heartbeat(self) -> None:
        """Replaced whole, without fsync: two quick operations, also on a network disk.

        A disk that fails stops no training here.
        """
        path = self.attempt.rank_heartbeat(self.rank)
        temporary = path.with_name(f".{path.name}.tmp")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            beat = {
                "step": self.step,
                "time": time.time(),
                "since": self.since,
                "host": socket.gethostname(),
                **self.look(),
            }
            temporary.write_text(json.dumps(beat))
            temporary.replace(path)

    def end(self, idle_s: float) -> None:
        """Leaves the stacks and the evidence, and ends this process.

        An older evidence stands: it came first.
        """
        with contextlib.suppress(OSError):
            self.attempt.hang.parent.mkdir(parents=True, exist_ok=True)
            self.attempt.hang.touch()
            with self.attempt.rank_stack(self.rank).open("w") as file:
                faulthandler.dump_traceback(file, all_threads=True)
            if not self.attempt.rank_evidence(self.rank).exists():
                write_json(
                    self.attempt.rank_evidence(self.rank),
                    {
                        "rank": self.rank,
                        "time": time.time(),
                        "host": socket.gethostname(),
                        "type": "Hang",
                        "message": f"no progress for {idle_s:.0f} s",
                        "step": self.step,
                        "since": self.since,
                        **self.look(),
                    },
                )
        # not by print: the main thread may hold standard output's lock
        os.write(
            2,
            f"watchdog: no progress for {idle_s:.0f} s; stacks in"
            f" {self.attempt.rank_stack(self.rank)}\n".encode(),
        )
        time.sleep(min(LINGER_S, (self.limit_s or LINGER_S) / 2))
        os._exit(1)


_watchdog: Watchdog | None = None


def start(attempt: Attempt, rank: int, limit_s: float | None) -> None:
    """Watches this process from now on.

    A crash in native code shows its Python stack in the rank's log.
    """
    global _watchdog
    faulthandler.enable()
    _watchdog = Watchdog(attempt, rank, limit_s)
    _watchdog.start()


def step(done: int) -> None:
    """The loop says so after each step. done: the steps of the run so far."""
    if _watchdog:
        _watchdog.step = done
        _watchdog.signs += 1


def alive() -> None:
    """A sign of progress within what takes longer than a step."""
    if _watchdog:
        _watchdog.signs += 1


def last_step() -> int | None:
    """The last step that this rank has done; None before the first."""
    return _watchdog.step if _watchdog else None


def place(stack: Iterable[tuple[FrameType, int]]) -> dict[str, Any]:
    """Where a stack is: its phase, the trainer's innermost line, and whether it waits for the other
    ranks (in a collective, or in the backward pass, which ends with one). stack: frames with their
    line numbers, the outermost first.
    """
    phase, where, file, function = "start-up", "", "", ""
    for frame, line in stack:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if not file.startswith(f"{TRAINER}/"):
            continue
        inside = file.removeprefix(f"{TRAINER.parent}/")
        where = f"{inside}:{line} in {function}"
        if (inside, function) == ("trainer/train.py", "train"):
            phase = "step"
        elif phase in ("start-up", "step"):
            phase = next(
                (name for start, name in PHASES.items() if inside.startswith(start)), phase
            )
    collective = "/torch/distributed/" in file or function == "_engine_run_backward"
    return {"phase": phase, "where": where, "collective": collective}
