"""The files of a run as a reader of many runs takes them: what is in them is checked before it is
believed, so that one run's bad file is one run's. Standard library only, and no pydantic: `status`
and `why` ask here.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from launch.errors import Failed
from trainer.config.files.json_files import open_file
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome, Status

# What code that trusts a file raises where the file is not as it should be.
OF_BAD_FILES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


class Unreadable(Failed):
    """A file of a run is not as its writer leaves it; the message names the file, what was found
    and what was expected.
    """

    def __init__(self, path: Path | str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = Path(path), why

    def within(self, folder: Path) -> str:
        """The message, the file named as it is called inside that folder."""
        inside = self.path.relative_to(folder) if self.path.is_relative_to(folder) else self.path
        return f"{inside}: {self.why}"


class NotJson(Unreadable):
    """A file is empty, or no whole JSON: a power cut leaves such of what was not synced."""


@dataclass(frozen=True)
class Kind:
    """What a value has to be. words: as a message says it."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < limit


TEXT = Kind("a text", lambda value: isinstance(value, str))
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
WHOLE = Kind("a whole number", lambda value: _is_whole(value, 2**63))
COUNT = Kind(
    "a whole number from 0 to a million", lambda value: _is_whole(value, 10**6 + 1) and value >= 0
)
# NaN is one
NUMBER = Kind("a number", lambda value: _is_number(value) and not abs(value) > 1e300)
SECONDS = Kind("seconds since 1970", lambda value: _is_number(value) and 0 <= value < 1e11)
STATUS = Kind(f"one of: {', '.join(get_args(Status))}", lambda value: value in get_args(Status))
SIGNAL = Kind("a signal's number", lambda value: value in list(signal.Signals))
RUN_ID = Kind(
    "a run_id",
    lambda value: isinstance(value, str) and "/" not in value and value not in ("", ".", ".."),
)
JOB_ID = Kind("a job's id", lambda value: isinstance(value, str) or _is_whole(value, 2**63))

# By file: the keys that are read, and of what kind their values are. A key with a star has to be
# there; any other may be missing or null, and keys of another version are left alone.
Shape = dict[str, Any]
LOCK: Shape = {
    "host*": TEXT,
    "boot": TEXT,
    "pid": WHOLE,
    "start": WHOLE,
    "pidns": TEXT,
    "attempt": TEXT,
}
OUTCOME: Shape = {
    "status*": STATUS,
    "verdict*": TEXT,
    "attempt*": TEXT,
    "written_by*": TEXT,
    "global_step": WHOLE,
    "rank": WHOLE,
    "cause": TEXT,
    "hint": TEXT,
    "test_accuracy": NUMBER,
    "weights_sha256": TEXT,
    "extra": MAPPING,
}
ATTEMPT: Shape = {
    "started": SECONDS,
    "ended": SECONDS,
    "host": TEXT,
    "nodes": COUNT,
    "world_size": COUNT,
    "deadline": SECONDS,
    "backend": TEXT,
    "argv": [TEXT],
}
HARDWARE: Shape = {"device": TEXT, "name": TEXT}
NODE: Shape = {"exit_status": WHOLE, "signal": SIGNAL, "oom_kills": WHOLE}
EVIDENCE: Shape = {
    "rank*": COUNT,
    "time*": SECONDS,
    "type*": TEXT,
    "message*": TEXT,
    "kinds": [TEXT],
    "host": TEXT,
    "step": WHOLE,
    "phase": TEXT,
    "where": TEXT,
    "since": SECONDS,
}
HEARTBEAT: Shape = {
    "time*": SECONDS,
    "since*": SECONDS,
    "step": WHOLE,
    "host": TEXT,
    "phase": TEXT,
    "where": TEXT,
}
SLURM_JOB: Shape = {"job_id*": JOB_ID, "logs": TEXT, "follows": [JOB_ID]}
CONFIG: Shape = {
    "job": TEXT,
    "run_id": TEXT,
    "sweep": TEXT,
    "trial": MAPPING,
    "execution": {"hang_limit_s": NUMBER},
    "train": {
        "epochs": WHOLE,
        "max_steps": WHOLE,
        "global_batch_size": WHOLE,
        "data": {"name": TEXT, "validation": NUMBER},
    },
}
PLAN: Shape = {"after": TEXT, "python": TEXT, "nodes": COUNT, "argv": [TEXT]}
DATA: Shape = {
    "path": TEXT,
    "sha256": TEXT,
    "samples": MAPPING,
    "unverified": LIST,
    "skipped": LIST,
}
EVALUATION: Shape = {"classes": [TEXT], "samples": [WHOLE], "correct": [WHOLE]}
METRICS: Shape = {
    "kind": TEXT,
    "split": TEXT,
    "global_step": WHOLE,
    "epoch": NUMBER,
    "loss": NUMBER,
    "accuracy": NUMBER,
}
TIMING: Shape = {
    "attempt": TEXT,
    "global_step": WHOLE,
    "total_steps": WHOLE,
    "step_time_s": NUMBER,
    "images_per_s": NUMBER,
    "elapsed_s": NUMBER,
}
# Likewise of a sweep.
LISTING: Shape = {"job_id": JOB_ID, "runs*": [TEXT], "script": TEXT, "code": MAPPING, "data": LIST}
TRIALS: Shape = {"job_id": JOB_ID, "tasks*": COUNT}
INTENT: Shape = {"token*": TEXT, "listing": TEXT}
CANCEL: Shape = {"time*": SECONDS}
POINT: Shape = {"axes*": MAPPING, "run_id*": RUN_ID, "error": TEXT, "study": TEXT, "trial": COUNT}
SUBMIT: Shape = {
    "started*": SECONDS,
    "ended": SECONDS,
    "backend": TEXT,
    "settings": [TEXT],
    "points*": [POINT],
    "pid": WHOLE,
}
SWEEP: Shape = {"job": TEXT, "submits*": [SUBMIT]}


def read(path: Path | str, shape: Shape) -> dict[str, Any] | None:
    """A JSON file that holds a mapping, or None where it is not there.

    Raises Unreadable: it cannot be opened, is not JSON, or holds something else than its shape.
    """
    try:
        with open_file(path) as file:
            text = file.read()
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise Unreadable(
                path, f"is a link to {os.readlink(path)}, which is not there"
            ) from None
        return None
    except OSError as error:
        raise Unreadable(path, str(error.strerror)) from None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise NotJson(path, "is not JSON" if text.strip() else "is empty") from None
    if problem := mistake(found, shape):
        raise Unreadable(path, problem)
    return dict(found)


def mistake(value: Any, shape: Any) -> str | None:
    """What of a value is not of that shape; None: nothing."""
    if isinstance(shape, Kind):
        return None if shape.holds(value) else f"found {shown(value)}; expected {shape.words}"
    if isinstance(shape, list):
        inside = (
            (mistake(item, shape[0]) for item in value)
            if isinstance(value, list)
            else (mistake(value, LIST),)
        )
        return next(filter(None, inside), None)
    if not isinstance(value, dict):
        return mistake(value, MAPPING)
    for name, kind in shape.items():
        has_to_be = name[-1] == "*"
        key = name[:-1] if has_to_be else name
        item = value.get(key)
        if item is None and not has_to_be:
            continue
        # most, of the thousands of files that `status` reads
        if isinstance(kind, Kind) and kind.holds(item):
            continue
        if key not in value:
            return f"has no '{key}'"
        if problem := mistake(item, kind):
            return f"{key}: {problem}"
    return None


def shown(value: Any) -> str:
    """A value in a few words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and not _is_whole(value, 2**63):
        return "a huge number"
    return repr(value)[:40]


def rows(path: Path, shape: Shape, last_bytes: int | None = None) -> list[dict[str, Any]]:
    """The rows of a .jsonl file, as `layout.read_jsonl` reads them. last_bytes: those within so
    many bytes from the end.

    A line that a killed writer left incomplete is passed over. Raises Unreadable: no row is JSON,
    or one is of another shape.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if last_bytes is not None and size > last_bytes:
                file.seek(-last_bytes, os.SEEK_END)
                file.readline()  # the part of a row
            lines = file.read().decode(errors="replace").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise Unreadable(
                path, f"is a link to {os.readlink(path)}, which is not there"
            ) from None
        return []
    except OSError as error:
        raise Unreadable(path, str(error.strerror)) from None
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found.append(checked(row, shape, path))
    if not found and len(lines) > 1:
        raise Unreadable(path, "no line of it is JSON")
    return found


def checked(row: dict[str, Any], shape: Shape, path: Path) -> dict[str, Any]:
    """A row of a .jsonl file. Raises Unreadable where it is of another shape."""
    if problem := mistake(row, shape):
        raise Unreadable(path, f"a row of it: {problem}")
    return row


def is_lock(path: Path) -> bool:
    """Whether a lock's file is there that somebody may hold.

    An empty one is what a power cut leaves, and is nobody's.

    Raises Unreadable.
    """
    if os.path.isfile(path) and os.stat(path).st_size == 0:
        return False
    return read(path, LOCK) is not None


def outcome(path: Path) -> Outcome | None:
    """How an attempt ended, or None where it left no word. Raises Unreadable."""
    found = read(path, OUTCOME)
    if found is None:
        return None
    known = {field.name for field in fields(Outcome)}
    return Outcome(
        **{key: value for key, value in found.items() if key in known and value is not None}
    )


def evidence(path: Path, shape: Shape) -> dict[str, Any] | None:
    """What a rank or a node left of its end; None where it left nothing, or nothing whole: then the
    other evidence judges.
    """
    try:
        return read(path, shape)
    except Unreadable:
        return None


@contextmanager
def reading(run: RunDir) -> Iterator[None]:
    """What goes wrong in reading the run's files becomes Unreadable, which names the
    first bad one.
    """
    try:
        yield
    except Unreadable:
        raise
    except OF_BAD_FILES as error:
        with suppress(OSError):
            check_files(run)
            rows(run.metrics, METRICS)
            rows(run.timing, TIMING)
        if isinstance(error, OSError):
            raise Unreadable(error.filename or run.path, str(error.strerror)) from error
        raise Unreadable(run.path, f"{type(error).__name__}: {error}") from error


def check_files(run: RunDir) -> None:
    """Reads every JSON file that the verbs believe. Raises Unreadable for the first bad one."""
    is_lock(run.lock)
    for path, shape in (
        (run.config, CONFIG),
        (run.plan, PLAN),
        (run.data_record, DATA),
        (run.slurm_job, SLURM_JOB),
        (run.outcome, OUTCOME),
        (run.evaluation("test"), EVALUATION),
    ):
        read(path, shape)
    for attempt in run.all_attempts():
        for path, shape in (
            (attempt.record, ATTEMPT),
            (attempt.outcome, OUTCOME),
            (attempt.hardware, HARDWARE),
        ):
            read(path, shape)
