"""The backends that run on this machine: starts launch.node from the frozen code and watches it.

The docker backend is the same, its plan's command being `docker run`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time

from launch import environment
from launch.errors import StartError
from launch.plan.build import Plan
from launch.runs import frozen_code
from launch.runs.find import newest_attempt_number
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import Attempt, RunDir

START_S = 60.0


def submit(run: RunDir, plan: Plan) -> tuple[Attempt, subprocess.Popen[bytes]]:
    """Starts an attempt and returns once it holds the run's lock (or has ended).

    Raises StartError.
    """
    attempt = run.attempt(f"{plan.backend}-{newest_attempt_number(run) + 1}")
    attempt.path.mkdir(parents=True)
    argv = [sys.executable, "-P", "-m", "launch.node", str(run.path), "--attempt", attempt.id]
    packages = str(frozen_code.on_path(run.code))
    by_hand = f"PYTHONPATH={shlex.quote(packages)} {shlex.join(argv)}"
    made_by = f"# made by `batchyard submit`; runs this command:\n# {_comment(plan)}"
    attempt.script.write_text(f"#!/bin/sh\n{made_by}\nexec env {by_hand}\n")
    process = subprocess.Popen(
        [*argv, "--die-with-parent"],
        env=environment.environment(PYTHONPATH=packages),
        cwd=run.path,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C at the terminal is ours to handle
    )
    end = time.monotonic() + START_S
    try:
        while not attempt.record.exists() and process.poll() is None:
            if time.monotonic() > end:
                raise StartError(f"{shlex.join(argv)} did not start within {START_S:.0f} s")
            time.sleep(0.02)
    except BaseException:  # Ctrl-C too: nobody would be in front of it
        process.kill()
        raise
    if not attempt.record.exists() and not attempt.outcome.exists() and process.returncode:
        raise StartError(
            f"{shlex.join(argv)} ended with {process.returncode} before it started anything"
        )
    return attempt, process


def _comment(plan: Plan) -> str:
    return plan.command().replace("\n", "\n# ")


def write_cancel(run: RunDir, attempt_id: str | None) -> None:
    """Lets the trainer and launch.node know that a person wants no more of this run; the next
    submit removes it.
    """
    write_json(run.cancel, {"time": time.time(), "attempt": attempt_id})


def cancel(pid: int, *, now: bool = False) -> None:
    """Tells the process that runs an attempt on this machine to stop after a checkpoint; now: ends
    it, and all that it started.
    """
    os.kill(pid, signal.SIGKILL if now else signal.SIGTERM)
