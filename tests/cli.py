"""Types batchyard's commands as a person would: in a process of its own, its output read."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from trainer.config.files.json_files import read_jsonl
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[1]
BATCHYARD = [sys.executable, "-P", "-c", "from launch.cli import main; main()"]
# digits, cut short: 8 epochs of 23 steps, a row each 5 steps, so that a test can stop it at a step
# that it saw
SHORT = (
    "--set",
    "train.epochs=8",
    "--set",
    "execution.log_every_steps=5",
    "--set",
    "tracking.mode=disabled",
)
# for what is the same on one rank: the second costs the start of torch
ONE_RANK = (
    "--backend",
    "local",
    "--set",
    "resources.nproc_per_node=1",
    "--set",
    "resources.cpus_per_task=1",
)


@dataclass(frozen=True)
class Shell:
    """A place to type in. runs: where the run directories lie."""

    runs: Path
    cwd: Path = PROJECT
    env: tuple[tuple[str, str], ...] = ()

    def start(self, *argv: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT), **dict(self.env)}
        where = ["--runs-dir", str(self.runs)] if argv[0] not in ("list", "check", "--help") else []
        return subprocess.Popen(
            [*BATCHYARD, argv[0], *where, *argv[1:]],
            cwd=self.cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *argv: str, code: int = 0, timeout_s: float = 240) -> str:
        """What the command printed; fails where it exits with another code."""
        process = self.start(*argv)
        return finish(process, code=code, timeout_s=timeout_s)

    def only_run(self) -> RunDir:
        (config,) = self.runs.glob("*/config.json")
        return RunDir(config.parent)


def finish(process: subprocess.Popen[str], *, code: int, timeout_s: float = 240) -> str:
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(
            f"{process.args} did not end in {timeout_s} s:\n{process.communicate()[0]}"
        ) from None
    assert process.returncode == code, (
        f"{process.args} exited {process.returncode}, not {code}:\n{printed}"
    )
    return printed


def wait_for(what: str, condition: Callable[[], T | None], timeout_s: float = 120) -> T:
    """The first value of `condition` that is true; fails loudly at the deadline."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def step_reached(run: RunDir, step: int) -> Callable[[], bool]:
    return lambda: any(row["global_step"] >= step for row in read_jsonl(run.metrics))


def outcome(run: RunDir) -> Outcome:
    found = Outcome.read(run.outcome)
    assert found is not None, f"{run.path} has no outcome"
    return found


def processes_of(run: RunDir) -> list[str]:
    """The command lines of living processes (zombies not counted) that name the run's directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if str(run.path) in line and state != "Z" and int(entry.name) != os.getpid():
            found.append(f"{entry.name} {line}")
    return found
