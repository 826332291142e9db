"""Finds run directories and says in which state a run is, from its own files."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launch.errors import Wrong
from launch.runs import records
from launch.runs.records import Unreadable
from launch.runs.state import CONFIG
from trainer.config.files.layout import RunDir

if TYPE_CHECKING:
    from trainer.config.run import RunConfig


class NoSuchRun(Wrong):
    """No run, or more than one, goes by that name; the message lists what there is."""


def all_runs(runs: Path) -> list[RunDir]:
    """Every run directory, the oldest first."""
    found = []
    with suppress(FileNotFoundError), os.scandir(runs) as entries:
        for entry in entries:
            if (age := _age(entry)) is not None:
                found.append((age, entry.name))
    return [RunDir(runs / name) for _, name in sorted(found)]


def _age(entry: os.DirEntry[str]) -> float | None:
    """When the run of that directory was configured; None: it is no run's.

    Of one that cannot be opened, when it was changed.
    """
    config = f"{entry.path}/{CONFIG}"
    try:
        return os.stat(config).st_mtime
    except (FileNotFoundError, NotADirectoryError):
        # a link that leads nowhere
        return os.lstat(config).st_mtime if os.path.islink(config) else None
    except OSError:
        return entry.stat(follow_symlinks=False).st_mtime


def find(name: str, runs: Path) -> RunDir:
    """RUN: a run_id, a unique prefix of one, or a job's name (its newest run). Raises NoSuchRun."""
    if not name.strip():
        raise NoSuchRun("the name of a run is empty: batchyard status lists them")
    exact = RunDir(runs / name)
    if "/" not in name and exact.config.exists():
        return exact
    known = all_runs(runs)
    if newest := newest_of_job(name, known):
        return newest
    matching = [r for r in known if r.run_id.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    ids = (
        ", ".join(r.run_id for r in (matching or known)[-8:])
        or "none yet: batchyard submit JOB makes one"
    )
    raise NoSuchRun(
        f"{'several runs begin with' if matching else 'no run is called'} '{name}' in {runs}: {ids}"
    )


def job_of(run_id: str) -> str:
    """The name of the job in a run_id, `<job>-<8 hex>[.<number>]`; what is none comes back as it
    is.
    """
    return re.sub(r"-[0-9a-f]{8}(\.\d+)?$", "", run_id)


def of_job(job: str, known: list[RunDir]) -> list[RunDir]:
    """The runs of that job."""
    return [r for r in known if r.run_id != job and job_of(r.run_id) == job]


def newest_of_job(job: str, known: list[RunDir]) -> RunDir | None:
    """The run of that job which was submitted last."""
    found = of_job(job, known)
    return found[-1] if found else None


def run_for(run_id: str, runs: Path, *, new: bool) -> RunDir:
    """The directory of a run; new: `<id>.2`, `.3` ... where `<id>` exists."""
    run, number = RunDir(runs / run_id), 1
    while new and run.path.exists():
        number += 1
        run = RunDir(runs / f"{run_id}.{number}")
    return run


def read_config(run: RunDir) -> RunConfig | None:
    """The run's config, or None where there is none.

    Raises Unreadable, also where another version wrote it.
    """
    from pydantic import ValidationError

    from trainer.config.run import RunConfig

    found = records.read(run.config, records.CONFIG)
    if found is None:
        return None
    try:
        return RunConfig.model_validate_json(json.dumps(found))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        why = f"is no configuration of this version: {place}: {first['msg']}"
        raise Unreadable(run.config, why) from None


def newest_attempt_number(run: RunDir) -> int:
    """The highest number that a local or docker attempt has used."""
    numbers = [
        int(m[1])
        for a in run.all_attempts()
        if (m := re.fullmatch(r"(?:local|docker)-(\d+)", a.id))
    ]
    return max(numbers, default=0)
