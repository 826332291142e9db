"""Kills a run many times, continues it each time, and compares it, bit for bit, with a run that
nobody disturbed.

The kills come from outside, as a cluster's do: signals to the processes that name the run's
directory. One kind comes from inside, since nothing else hits it: a kill in the middle of a
checkpoint's writing, by BATCHYARD_FAULT (trainer/ranks/group.py). What a real cluster does to a
queued run is launch/drill/cluster.py's.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from launch import environment as site
from launch.runs.evidence import checkpoint_step
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import EXIT_DONE, EXIT_STOPPED, Outcome

KINDS = ("worker", "torchrun", "session", "TERM", "checkpoint")
# of a checkpoint's writing: trainer/checkpoints/writer.py
POINTS = ("weights", "trainer", "manifest", "rename", "latest", "prune")
END_S = 90.0  # by when all processes of a killed attempt are gone
REACH_S = 600.0  # by when an attempt reaches the step at which it is killed


class DrillError(Exception):
    """The drill could not be carried out; the message says what went wrong and what was printed."""


@dataclass(frozen=True)
class Kill:
    """One disturbance. step: as soon as the attempt has done it, or one behind it; for a
    checkpoint's, the step whose checkpoint is being written.
    """

    kind: str
    step: int
    rank: int
    point: str = ""

    def __str__(self) -> str:
        return {
            "worker": f"SIGKILL to rank {self.rank}",
            "torchrun": "SIGKILL to torchrun",
            "session": "SIGKILL to all its processes",
            "TERM": "SIGTERM to the launcher",
            "checkpoint": f"SIGKILL in a checkpoint's {self.point}",
            "signal": "USR2 by scancel",
            "requeue": "scontrol requeue",
            "preempt": "preempted by another job",
            "timeout": "its time limit",
            "cut": "its node's power cut",
        }[self.kind]


@dataclass(frozen=True)
class Killed:
    """What one kill did."""

    kill: Kill
    attempt: str
    reached: int  # the last step in metrics.jsonl
    seconds: float


@dataclass(frozen=True)
class Result:
    """first_difference: None where metrics.jsonl is the same. left_alive: what outlived it. ends:
    the attempts' verdicts.
    """

    kills: list[Killed]
    weights: tuple[str | None, str | None]
    rows: int
    first_difference: str | None
    spoilt: list[str]
    left_alive: list[str]
    ends: list[str]

    @property
    def equal(self) -> bool:
        same = (
            self.weights[0] is not None
            and self.weights[0] == self.weights[1]
            and self.first_difference is None
        )
        return same and not self.spoilt and not self.left_alive


def plan(kills: int, seed: int, steps: int, ranks: int, checkpoint_every: int) -> list[Kill]:
    """`kills` kills at random steps in their order, each kind as often as the others; none in the
    last tenth, which a run that was asked to stop may still finish. Pure.
    """
    draw = random.Random(seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    draw.shuffle(kinds)
    found = []
    for kind, step in zip(
        kinds, sorted(draw.choices(range(1, max(2, steps * 9 // 10)), k=kills)), strict=True
    ):
        rank, point = draw.randrange(ranks), draw.choice(POINTS)
        if kind == "checkpoint":
            step = min(
                -(-step // checkpoint_every) * checkpoint_every,
                (steps - 1) // checkpoint_every * checkpoint_every,
            )
            found.append(Kill(kind, max(step, checkpoint_every), 0, point))
        else:
            found.append(Kill(kind, step, rank))
    return found


@dataclass(frozen=True)
class Drill:
    """One drill. arguments: of `submit`, after the job's name. folder: replaced."""

    job: str
    arguments: list[str]
    folder: Path
    kills: int
    seed: int

    def carry_out(self, tell: Callable[[Killed], None]) -> Result:
        """tell: called after each kill. Raises DrillError."""
        self.clear()
        whole = self._undisturbed()
        outcome, config = Outcome.read(whole.outcome), read_json(whole.config)
        assert outcome is not None and outcome.global_step is not None
        steps = outcome.global_step
        every = max(1, steps // (2 * max(1, self.kills)))
        kills, left = [], []
        for kill in plan(self.kills, self.seed, steps, config["execution"]["ranks"], every):
            killed, alive = self._kill(whole.run_id, kill, every, steps)
            kills.append(killed)
            left += alive
            tell(killed)
        run = RunDir(self.folder / "disturbed" / whole.run_id)
        self.submit("disturbed", every).wait()
        return compare(kills, whole, run, left + processes(run))

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(
        self, which: str, every: int | None, fault: str = "", more: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """Starts `batchyard submit` of one of the two runs. every: steps between checkpoints, None
        for the job's own.
        """
        settings = ["execution.log_every_steps=1", "tracking.mode=disabled"]
        settings += [f"execution.checkpoint_every_steps={every}"] if every else []
        argv = [
            sys.executable,
            "-m",
            "launch",
            "submit",
            self.job,
            "--runs-dir",
            str(self.folder / which),
            *self.arguments,
            *more,
        ]
        argv += [part for setting in settings for part in ("--set", setting)]
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = site.environment(**({"BATCHYARD_FAULT": fault} if fault else {}))
        with self.log(which).open("ab") as log:
            return subprocess.Popen(
                argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def log(self, which: str) -> Path:
        return self.folder / f"{which}.log"

    def _undisturbed(self) -> RunDir:
        if self.submit("undisturbed", None).wait() != EXIT_DONE:
            raise DrillError(
                "the undisturbed run did not end"
                f" well:\n{self.log('undisturbed').read_text(errors='replace')}"
            )
        (config,) = (self.folder / "undisturbed").glob("*/config.json")
        return RunDir(config.parent)

    def _kill(self, run_id: str, kill: Kill, every: int, steps: int) -> tuple[Killed, list[str]]:
        begun = time.monotonic()
        run = RunDir(self.folder / "disturbed" / run_id)
        # the next one that is still to be written: a stop before it may have come late
        if kill.kind == "checkpoint":
            step = max(kill.step, min(((checkpoint_step(run) or 0) // every + 1) * every, steps))
            # each point of a step kills once
            while run.killed(kill.point, step).exists() and step < steps:
                step = min(step + every, steps)
            kill = replace(kill, step=step)
        fault = f"kill:{kill.point}:{kill.step}" if kill.kind == "checkpoint" else ""
        before = {attempt.id for attempt in run.all_attempts()}
        launcher = self.submit("disturbed", every, fault)
        while launcher.poll() is None and (fault or step_of_others(run, before) < kill.step):
            if time.monotonic() - begun > REACH_S:
                raise DrillError(
                    f"step {kill.step} was not reached within {REACH_S:.0f} s; see"
                    f" {self.log('disturbed')}"
                )
            time.sleep(0.003)
        if launcher.poll() is None:
            strike(kill, run, launcher)
        launcher.wait()
        alive = gone(run)
        attempt = run.all_attempts()[-1].id if run.all_attempts() else "-"
        if launcher.returncode == EXIT_DONE and kill.kind != "TERM":
            raise DrillError(
                f"the run ended before '{kill}' at step {kill.step}: fewer --kills, or more steps"
            )
        if kill.kind == "TERM" and (code := launcher.returncode) not in (EXIT_STOPPED, EXIT_DONE):
            raise DrillError(
                f"SIGTERM ended with exit code {code}, not {EXIT_STOPPED}; see"
                f" {self.log('disturbed')}"
            )
        return Killed(kill, attempt, last_step(run), time.monotonic() - begun), alive


def compare(kills: list[Killed], whole: RunDir, run: RunDir, left_alive: list[str]) -> Result:
    """The run that was disturbed against the one that was not."""
    before, after = Outcome.read(whole.outcome), Outcome.read(run.outcome)
    return Result(
        kills,
        (
            before.weights_sha256 if before else None,
            after.weights_sha256 if after and after.status == "completed" else None,
        ),
        len(read_jsonl(whole.metrics)),
        difference(whole.metrics, run.metrics),
        sorted(p.name for p in run.checkpoints.glob("bad-*")),
        left_alive,
        ends(run),
    )


def ends(run: RunDir) -> list[str]:
    """How each attempt ended, the oldest first."""
    return [
        end.verdict if (end := Outcome.read(attempt.outcome)) else "no word"
        for attempt in run.all_attempts()
    ]


def strike(kill: Kill, run: RunDir, launcher: subprocess.Popen[bytes]) -> None:
    """Sends the signal."""
    if kill.kind == "TERM":
        launcher.terminate()
        return
    for pid, argv, environment in of_run(run):
        is_torchrun = "torch.distributed.run" in argv
        is_rank = (
            environment.get("RANK") == str(kill.rank) and not is_torchrun and "trainer" in argv
        )
        if (
            kill.kind == "session"
            or (kill.kind == "torchrun" and is_torchrun)
            or (kill.kind == "worker" and is_rank)
        ):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    if kill.kind == "session":
        launcher.kill()


def of_run(run: RunDir) -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """pid, argv and environment of the living processes, zombies not counted, that name the run's
    directory.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if (
            state not in "ZX"
            and int(entry.name) != os.getpid()
            and any(str(run.path) in argument for argument in argv)
        ):
            yield int(entry.name), argv, dict(v.split("=", 1) for v in variables if "=" in v)


def processes(run: RunDir) -> list[str]:
    return [f"{pid} {' '.join(argv)}".strip() for pid, argv, _ in of_run(run)]


def gone(run: RunDir) -> list[str]:
    """Waits until no process of the run is left; what is still there at the deadline is
    returned.
    """
    end = time.monotonic() + END_S
    while (left := processes(run)) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def step_of_others(run: RunDir, before: set[str]) -> int:
    """The newest step that an attempt not in `before` has done: a kill before it came up would hit
    nobody.
    """
    rows = read_jsonl(run.timing, last_bytes=4096)
    return max(
        (int(row["global_step"]) for row in rows if row.get("attempt") not in before), default=-1
    )


def last_step(run: RunDir) -> int:
    """The newest step in metrics.jsonl."""
    rows = read_jsonl(run.metrics)
    return int(rows[-1]["global_step"]) if rows else 0


def difference(one: Path, other: Path) -> str | None:
    """The first row in which two files of metrics differ, in words; None where they are the same
    bytes.
    """
    if other.exists() and one.read_bytes() == other.read_bytes():
        return None
    lines = [path.read_text().splitlines() if path.exists() else [] for path in (one, other)]
    for number, (a, b) in enumerate(zip_longest(*lines), start=1):
        if a != b:
            rows = [json.loads(line) if line else {} for line in (a, b)]
            keys = [k for k in {**rows[0], **rows[1]} if rows[0].get(k) != rows[1].get(k)]
            said = ", ".join(f"{k} {rows[0].get(k)} against {rows[1].get(k)}" for k in keys)
            return f"row {number} (global_step {rows[0].get('global_step')}): {said}"
    return "the bytes differ, the rows do not"
