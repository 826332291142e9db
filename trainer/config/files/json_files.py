"""JSON files, read and written as a whole; only regular files are read."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

NOT_A_FILE = "is a FIFO, a socket or a device; expected a regular file: move it away"


class NotAFile(OSError):
    """Something else than a regular file has the name of one; strerror says what."""


def open_file(path: Path | str) -> BinaryIO:
    """Opens a regular file for reading.

    Raises OSError; of it NotAFile for a FIFO, a socket or a device, for which a reader would wait
    for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotAFile(error.errno, NOT_A_FILE, str(path)) from None
        raise
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise NotAFile(errno.EINVAL, NOT_A_FILE, str(path))


def read_json(path: Path | str) -> Any:
    """The file's content, or None where it does not exist or is not whole JSON (a reader never
    fails on a writer).
    """
    try:
        with open_file(path) as file:
            return json.loads(file.read())
    except (OSError, ValueError, RecursionError):  # the last: nested deeper than any file of ours
        return None


def write_json(path: Path, value: Any, *, sync: bool = True) -> None:
    """Replaces `path` as `write_text` does."""
    write_text(path, to_json(value, indent=2) + "\n", sync=sync)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """The value as JSON, with null for every number that is not finite: JSON has no word for it."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(finite_or_none(value), indent=indent, allow_nan=False)


def finite_or_none(value: Any) -> Any:
    """The value, with None for every number in it that is not finite, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return value


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Replaces `path` atomically: a reader sees the old file or the new one, never a part.

    sync: it outlives a power cut from now on. One fsync takes milliseconds: who writes thousands of
    files syncs once, at the end.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            file = temporary.open("w", encoding="utf-8")
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open("w", encoding="utf-8")
        with file:
            file.write(text)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full disk keeps no half of it
        raise


def read_jsonl(path: Path, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The whole rows of a .jsonl file; a last line that is still being written is left out.

    last_bytes: only those within so many bytes from the end, so that a table of thousands of runs
    stays quick.
    """
    try:
        with open_file(path) as file:
            if last_bytes is not None and os.fstat(file.fileno()).st_size > last_bytes:
                file.seek(-last_bytes, os.SEEK_END)
                file.readline()  # the part of a row
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            break
    return rows
