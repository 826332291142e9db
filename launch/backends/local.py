"""The backends that run on this machine: starts launch.node from the frozen code and watches it.

The docker backend is the same, its plan's command being `docker run`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from launch import environment
from launch.errors import Failed
from launch.plan.build import Plan
from launch.runs.find import newest_attempt_number
from launch.runs.verdict import conclude
from launch.submit import snapshot
from trainer.config.files.layout import Attempt, RunDir, write_json
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import EXIT_DONE, Outcome

if TYPE_CHECKING:
    from launch.console.follow import Follower

START_S = 60.0


class StartError(Failed):
    """The attempt could not be started; the message shows the command and what it said."""


def submit(run: RunDir, plan: Plan) -> tuple[Attempt, subprocess.Popen[bytes]]:
    """Starts an attempt and returns once it holds the run's lock (or has ended).

    Raises StartError.
    """
    attempt = run.attempt(f"{plan.backend}-{newest_attempt_number(run) + 1}")
    attempt.path.mkdir(parents=True)
    argv = [sys.executable, "-P", "-m", "launch.node", str(run.path), "--attempt", attempt.id]
    packages = str(snapshot.on_path(run.code))
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


class Foreground:
    """In front of a run: Ctrl-C cancels it after a checkpoint, a second one at once; TERM and HUP
    stop it after a checkpoint.

    asked_to_stop: whether one of them came; then no other run shall begin.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.asked_to_stop = False

    def wait(
        self, run: RunDir, attempt: Attempt, process: subprocess.Popen[bytes], follower: Follower
    ) -> Outcome:
        """Shows the run until it ends; returns how."""
        self.run, self.attempt, self.process, self.follower = run, attempt, process, follower
        self.interrupts = 0
        before = [signal.signal(number, self._handle) for number in self.SIGNALS]
        try:
            with self.follower:
                while self.process.poll() is None:
                    self.follower.show()
                    time.sleep(0.1)
                self.follower.show()
        finally:
            for number, handler in zip(self.SIGNALS, before, strict=True):
                signal.signal(number, handler)
        # launch.node itself
        killed = self.process.returncode != EXIT_DONE and not self.attempt.outcome.exists()
        outcome = conclude(self.run, self.attempt, self.process.returncode)
        if killed and Lock(self.run.lock).holder() is None:
            with contextlib.suppress(OSError):  # the disk may be what ended it
                outcome.write(self.run.outcome)
        return outcome

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked_to_stop = True
        if number != signal.SIGINT:
            self.process.terminate()
            return
        self.interrupts += 1
        if self.interrupts == 1:
            write_cancel(self.run, self.attempt.id)
            self.follower.note(
                "stopping after a checkpoint; Ctrl-C again stops at once and loses the steps since"
                " the last one"
            )
            self.process.terminate()
        else:
            self.process.kill()  # what it started dies with it


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


def image_id(client: str, image: str) -> str | None:
    """The engine's digest of the image, None where it has none.

    Raises StartError where there is no client or no engine.
    """
    try:
        found = subprocess.run(
            [client, "image", "inspect", "--format={{.Id}}", image],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise StartError(
            f"there is no '{client}' command here: install docker, or use --backend local"
        ) from None
    if found.returncode and "no such image" not in found.stderr.lower():
        raise StartError(
            f"`{client} image inspect {image}` failed ({found.returncode}): {found.stderr.strip()}"
        )
    return found.stdout.strip() if found.returncode == 0 else None


def python_has(python: str, module: str) -> bool:
    """Whether that Python can import `module` (found, not imported)."""
    if python == sys.executable:
        spec = importlib.util.find_spec(module)
        return spec is not None and spec.origin is not None  # a mere folder of that name is none
    code = (
        f"import importlib.util as i, sys; sys.exit(getattr(i.find_spec({module!r}), 'origin',"
        " None) is None)"
    )
    if not Path(python).exists():
        return False
    return subprocess.run([python, "-P", "-c", code], check=False).returncode == 0
