"""The lock of a submit: one at a time for a run or a sweep."""

from __future__ import annotations

import time
from pathlib import Path

from launch.errors import SubmitError
from trainer.config.files.lock import Lock

LOCK_WAIT_S = 60.0


def take(path: Path, name: str, held: Lock | None = None) -> Lock:
    """The lock under which one submit of a run (or a sweep) decides; waits for another to be done.
    held: one of this process, which renews and frees the new one with itself. Raises SubmitError.
    """
    lock = Lock(path)
    end = time.monotonic() + LOCK_WAIT_S
    while not acquire(lock, name, held):
        if time.monotonic() > end:
            raise SubmitError(
                f"another submit of {name} has not ended within {LOCK_WAIT_S:.0f} s: {lock.owner()}"
            )
        time.sleep(0.05)
    return lock


def acquire(lock: Lock, name: str, held: Lock | None = None) -> bool:
    try:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        return held.acquire_also(lock) if held else lock.acquire()
    except OSError as error:
        raise SubmitError(
            f"{lock.path.parent} cannot be written ({error.strerror}): free the disk, or name"
            f" another place for {name} by --runs-dir or paths.runs"
        ) from None
