"""What time it is where a file was written: this machine's clock, or the file system's own.

A file server stamps files by its own clock, which this machine's may be an hour away from. So the
age of a file that another machine wrote is known by the stamp of a file that was written just now,
beside it. Standard library only: compute nodes import it too.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Tells the time in Unix seconds."""

    def now(self) -> float: ...


class MachineClock:
    """This machine's clock: for commands that only read, and so write no file to compare with."""

    def now(self) -> float:
        return time.time()


class FileClock:
    """The file system's time as of a file that this process wrote, or renewed, a moment ago."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def now(self) -> float:
        return self.path.stat().st_mtime


class FolderClock:
    """The clock of a folder's file system.

    A file is written there when the time is first asked for. That happens once: afterwards the
    difference between the two clocks is known. In a folder that cannot be written the time is this
    machine's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ahead_s: float | None = None

    def now(self) -> float:
        if self._ahead_s is None:
            self._ahead_s = self._measure()
        return time.time() + self._ahead_s

    def _measure(self) -> float:
        """How far the file system's clock is ahead of this machine's."""
        probe = self.folder / f".clock.{os.urandom(8).hex()}"
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime - time.time()
        except OSError:
            return 0.0
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
