"""A run in the foreground: Ctrl-C and other signals stop it after a checkpoint."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from types import FrameType
from typing import TYPE_CHECKING

from launch.backends.local import write_cancel
from launch.runs.verdict import conclude
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import EXIT_DONE, Outcome

if TYPE_CHECKING:
    from launch.console.follow import Follower


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
