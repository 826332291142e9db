"""A search's journal, optuna's file of changes: half a record at its end stays in nobody's way.

optuna appends to what a killed process or a full disk left of a record, and can then read neither.
Here what is no whole record is put aside before anything is appended. Imported where a search is
on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

TAIL_BYTES = 2**16  # in which the last record is looked for, before the whole file is read


class Journal(JournalFileBackend):
    """optuna's, which puts aside what is behind the last whole record before it appends."""

    def __init__(self, path: Path) -> None:
        self.lock = JournalFileSymlinkLock(str(path))
        super().__init__(str(path), lock_obj=self.lock)
        self.path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with _held(self.lock):
            if not _ends_whole(self.path):
                _cut(self.path)
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())


def put_aside(path: Path) -> Path | None:
    """Moves what is behind the last whole record of a journal to a file beside it.

    Returns that file; None where every record is whole, or there is no journal. Blank lines are
    removed. Raises OSError.
    """
    if not path.exists():
        return None
    with _held(JournalFileSymlinkLock(str(path))):
        return _cut(path)


def is_whole(path: Path) -> bool:
    """Whether there is a journal, all of whose lines are records."""
    return path.exists() and all(map(_is_record, path.read_bytes().splitlines(keepends=True)))


@contextmanager
def _held(lock: JournalFileSymlinkLock) -> Iterator[None]:
    lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _cut(path: Path) -> Path | None:
    content = path.read_bytes()
    kept, read = list[bytes](), 0
    for line in content.splitlines(keepends=True):
        if line.strip() and not _is_record(line):
            break
        read += len(line)
        if line.strip():
            kept.append(line)

    whole, rest = b"".join(kept), content[read:]
    aside = None
    if rest:
        number = 1 + len(list(path.parent.glob(f"{path.name}.aside-*")))
        aside = path.with_name(f"{path.name}.aside-{number}")
        aside.write_bytes(rest)
    if len(whole) == read:  # who reads the journal now stays where it is
        os.truncate(path, read)
    else:
        fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        fresh.write_bytes(whole)
        fresh.replace(path)
    return aside


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        lines = file.read().splitlines(keepends=True)
    return not lines or _is_record(lines[-1])


def _is_record(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and isinstance(found, dict) and "op_code" in found
