"""What torchrun and launch.node say to a rank by its environment."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from trainer.config.files.layout import Attempt, RunDir


def rank_from_environment() -> int:
    return int(os.environ.get("RANK", 0))


def prepared_from_environment() -> Path | None:
    """Where launch.node has copied the prepared data to, on this node's own disk."""
    return Path(os.environ["BATCHYARD_PREPARED"]) if "BATCHYARD_PREPARED" in os.environ else None


def attempt_from_environment(run: RunDir) -> Attempt:
    return run.attempt(os.environ.get("BATCHYARD_ATTEMPT", "manual-1"))


def say(line: str) -> None:
    """One line in this rank's log.

    A full disk stops nothing: the line waits in the stream for the next one.
    """
    with suppress(OSError):
        print(line, flush=True)
