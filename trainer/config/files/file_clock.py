"""What time it is where a file was written: this machine's clock, or the file system's own.

A file server stamps files by its own clock, which this machine's may be an hour away from. So the
age of a file that another machine wrote is known by the stamp of a file that was written just now,
beside it. Standard library only: compute nodes import it too.
"""

from __future__ import annotations

import contextlib
import functools
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

    A file is written there when the time is first asked for. That happens once: afterwards the time
    that passed since is added. In a folder that cannot be written the time is this machine's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._at_boot: float | None = None

    def now(self) -> float:
        if self._at_boot is None:
            self._at_boot = self._measure() - uptime_s()
        return self._at_boot + uptime_s()

    def _measure(self) -> float:
        probe = self.folder / f".clock.{os.urandom(8).hex()}"
        try:
            probe.touch(exist_ok=False)
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


@functools.cache
def folder_clock(folder: Path) -> FolderClock:
    """The clock of that folder, one for the whole command: at most one file is written for it."""
    return FolderClock(folder)


def uptime_s() -> float:
    """Seconds that also pass while the machine sleeps, and that no change of its clock moves."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()
