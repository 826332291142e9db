"""A job array's listing, `<sweep>/slurm/points-<id>.json`: which run each task is.

Standard library only: nodes read it.

A point that waits for its first start is a directory with its config.json. What it needs besides
stands here, once for all points, and in the .jsonl beside it, a line for each: on a shared disk
every file takes its time, and a sweep has thousands of points. The node that begins the point
writes them into its directory.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from launch.runs import records
from launch.runs.records import NotJson, Unreadable
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.layout import RunDir, SweepDir


@dataclass(frozen=True)
class Task:
    """A run that a task of an array will be. waiting: {job, plan, data}, the text of its job.yaml,
    its plan, and the number of its record among the listing's; None: its directory has all that.
    """

    run: RunDir
    waiting: dict[str, Any] | None


def write(
    sweep: SweepDir,
    tasks: Sequence[Task],
    script: str,
    code: dict[str, Any],
    data: list[dict[str, Any]],
) -> Path:
    """The listing of an array that is about to be submitted. script: its first task's; code: {root,
    record}. Raises OSError.
    """
    listing = sweep.slurm / f"points-{os.urandom(6).hex()}.json"
    listing.with_suffix(".jsonl").write_text(
        "".join(json.dumps(task.waiting) + "\n" for task in tasks)
    )
    write_json(
        listing,
        {
            "job_id": None,
            "code": code,
            "data": data,
            "script": script,
            "runs": [task.run.run_id for task in tasks],
        },
        sync=False,
    )
    return listing


def queued(listing: Path, job: str) -> Iterator[tuple[RunDir, str]]:
    """Records which job the array is.

    Yields each run that has begun, which has a record of its own, and the job of its task.
    """
    listed = {**read_json(listing), "job_id": job}
    write_json(listing, listed)
    for task, run in enumerate(_runs(listing, listed)):
        if run.plan.exists():
            yield run, f"{job}_{task}"


def begin(listing: Path, task: int, job: str, *, first_node: bool) -> tuple[RunDir, str] | None:
    """The run that the task is, whose directory the first node makes whole, and the script that
    starts it by hand. None: the run is gone, or was removed and waits for a newer array's task.

    job: the task's, as squeue shows it. Raises OSError.
    """
    listed = read_json(listing)
    runs = _runs(listing, listed)
    run = runs[task]
    if not run.plan.exists() and not run.config.exists():
        return None
    if first_node and not run.plan.exists():
        newest, waiting = _newest(run), _waiting(listing, task)
        if waiting is None or (newest and _age(newest[0]) > _age(listing)):
            return None
        # an earlier start, or a submit of this run alone, was killed on its way through here
        if run.code.is_symlink():
            run.code.unlink()
        shutil.rmtree(run.code, ignore_errors=True)
        run.code.symlink_to(listed["code"]["root"])
        write_json(run.code_record, listed["code"]["record"])
        write_json(run.data_record, listed["data"][waiting["data"]])
        write_text(run.job, waiting["job"])
        write_json(run.slurm_job, {"job_id": job, "logs": str(listing.parent)})
        write_json(run.plan, waiting["plan"])  # the last, for it tells that all is there
    return run, listed["script"].replace(runs[0].run_id, run.run_id)


def job_text(run: RunDir) -> str | None:
    """job.yaml of a point that has not begun, whether it was queued or not; None: no listing has
    it, or its directory does.
    """
    found = None if run.plan.exists() else _newest(run, also_unrecorded=True)
    return waiting["job"] if found and (waiting := _waiting(*found)) else None


def job_of(run: RunDir) -> dict[str, Any] | None:
    """{job_id, logs} of the newest Slurm job that the run was queued as: where it has begun, by its
    own record; else by the arrays of its sweep. None: it was never queued. Raises Unreadable.
    """
    if not run.plan.exists() and (found := _newest(run)):
        listing, task = found
        return {"job_id": f"{read_json(listing)['job_id']}_{task}", "logs": str(listing.parent)}
    return records.read(run.slurm_job, records.SLURM_JOB)


def jobs(runs: Path) -> tuple[dict[str, str], dict[str, Unreadable]]:
    """By run_id, the job of each task of all arrays of the sweeps in `runs`; of several, of the
    newest. And the sweeps that have a bad listing, by their id.
    """
    sweeps = (
        [SweepDir(runs / name) for name in os.listdir(runs) if ".sweep" in name]
        if runs.exists()
        else []
    )
    arrays, problems = list[tuple[Path, dict[str, Any]]](), dict[str, Unreadable]()
    for sweep in sweeps:
        try:
            arrays += _arrays(sweep)
        except Unreadable as error:
            problems[sweep.sweep_id] = error
    arrays.sort(key=lambda array: _age(array[0]))
    found = {
        run_id: f"{listed['job_id']}_{task}"
        for _, listed in arrays
        for task, run_id in enumerate(listed["runs"])
    }
    return found, problems


def _arrays(sweep: SweepDir, *, also_unrecorded: bool = False) -> list[tuple[Path, dict[str, Any]]]:
    """The listings of a sweep that became jobs. also_unrecorded: those too that Slurm refused, or
    took a moment ago.

    One that is no whole JSON became none: it is synced before its job is submitted. Raises
    Unreadable.
    """
    found = dict[Path, dict[str, Any] | None]()
    for path in sweep.slurm.glob("points-*.json"):
        with suppress(NotJson):
            found[path] = records.read(path, records.LISTING)
    return [
        (path, listed)
        for path, listed in found.items()
        if listed and (also_unrecorded or listed.get("job_id"))
    ]


def _age(listing: Path) -> float:
    """When it was written, by what is never written again: mostly by the file server's clock, which
    all submits have in common. 0 of the version before, which wrote all into each directory.
    """
    try:
        return listing.with_suffix(".jsonl").stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _newest(run: RunDir, *, also_unrecorded: bool = False) -> tuple[Path, int] | None:
    """The newest listing of its sweep that the run stands in, and where."""
    if not (sweep := (records.read(run.config, records.CONFIG) or {}).get("sweep")):
        return None
    arrays = _arrays(SweepDir(run.path.parent / sweep), also_unrecorded=also_unrecorded)
    having = {
        path: listed["runs"].index(run.run_id)
        for path, listed in arrays
        if run.run_id in listed["runs"]
    }
    return max(having.items(), key=lambda found: _age(found[0]), default=None)


def _runs(listing: Path, listed: dict[str, Any]) -> list[RunDir]:
    return [RunDir(listing.parents[2] / run_id) for run_id in listed["runs"]]


def _waiting(listing: Path, task: int) -> dict[str, Any] | None:
    with listing.with_suffix(".jsonl").open(encoding="utf-8") as lines:
        found: dict[str, Any] | None = json.loads(next(islice(lines, task, None)))
    return found
