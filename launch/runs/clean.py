"""What `batchyard clean` would remove: of finished runs, the checkpoints that nobody goes on from.

Removes nothing by itself.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from launch.runs import records
from launch.runs.state import Standing
from trainer.config.files.layout import RunDir

AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([mhdw])")
SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Removal:
    """What goes of one run. size: bytes on disk."""

    run: RunDir
    paths: list[Path]
    size: int


def seconds(age: str) -> float:
    """`30d`, `12h`, `90m`, `2w` in seconds. Raises ValueError."""
    found = AGE.fullmatch(age.strip())
    if not found:
        raise ValueError(f"found {age!r}; expected a number and m, h, d or w, as in 30d")
    return float(found[1]) * SECONDS[found[2]]


def removals(run: RunDir, where: Standing, now: float, older_than_s: float = 0.0) -> Removal | None:
    """What a completed run no longer needs: all checkpoints but the best and the last, what was
    moved aside as spoilt, what a killed writer left, and the weights that a replay would have
    needed. None: nothing, or it is no such run.

    older_than_s: since its last attempt ended, seconds. A run that may go on keeps everything.
    Raises Unreadable.
    """
    if where.state != "completed" or where.attempt is None:
        return None
    record = records.read(where.attempt.record, records.ATTEMPT) or {}
    ended = record.get("ended") or where.attempt.outcome.stat().st_mtime
    if now - float(ended) < older_than_s:
        return None
    links = (run.checkpoints / name for name in ("latest", "best"))
    kept = {link.resolve().name for link in links if link.is_symlink()}
    folders = [
        p
        for p in sorted(run.checkpoints.glob("*"))
        if p.is_dir() and not p.is_symlink() and p.name not in kept
    ]
    if not any((run.checkpoints / name).is_dir() for name in kept):
        folders = []  # the links are not in order: a person may still want one of these
    paths = [*folders, *sorted(run.path.glob("attempts/*/not-finite.pt"))]
    return Removal(run, paths, sum(map(size, paths))) if paths else None


def size(path: Path) -> int:
    """Bytes that a file, or a folder and all in it, takes on disk."""
    files = (
        [path]
        if path.is_file()
        else [Path(place) / name for place, _, names in os.walk(path) for name in names]
    )
    return sum(file.lstat().st_blocks * 512 for file in files)
