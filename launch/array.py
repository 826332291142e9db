"""A job array's listing, `<sweep>/slurm/points-<id>.json`: which run each task is. Standard library only: nodes read it.

A point that waits for its first start is a directory with its config.json. What it needs besides stands here, once for all points,
and in the .jsonl beside it, a line for each: on a shared disk every file takes its time, and a sweep has thousands of points. The
node that begins the point writes them into its directory.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainer.config.layout import RunDir, SweepDir, read_json, write_json, write_text


@dataclass(frozen=True)
class Task:
    """A run that a task of an array will be. waiting: {job, plan, data}, the text of its job.yaml, its plan, and the number of its
    record among the listing's; None: its directory has all that."""

    run: RunDir
    waiting: dict[str, Any] | None


def write(sweep: SweepDir, tasks: Sequence[Task], script: str, code: dict[str, Any], data: list[dict[str, Any]]) -> Path:
    """The listing of an array that is about to be submitted. script: its first task's; code: {root, record}. Raises OSError."""
    listing = sweep.slurm / f"points-{os.urandom(6).hex()}.json"
    listing.with_suffix(".jsonl").write_text("".join(json.dumps(task.waiting) + "\n" for task in tasks))
    write_json(listing, {
        "time": time.time(), "job_id": None, "code": code, "data": data, "script": script, "runs": [t.run.run_id for t in tasks],
    }, sync=False)  # fmt: skip
    return listing


def queued(listing: Path, job: str) -> Iterator[tuple[RunDir, str]]:
    """Records which job the array is. Yields each run that has a record of its own to bring up to date, and the job of its task."""
    listed = {**read_json(listing), "job_id": job}
    write_json(listing, listed)
    for task, run in enumerate(_runs(listing, listed)):
        if run.plan.exists():
            yield run, f"{job}_{task}"


def begin(listing: Path, task: int, job: str, *, first_node: bool) -> tuple[RunDir, str]:
    """The run that the task is, whose directory the first node makes whole, and the script that starts it by hand.

    job: the task's, as squeue shows it. Raises OSError.
    """
    listed = read_json(listing)
    runs = _runs(listing, listed)
    run = runs[task]
    if first_node and run.config.exists() and not run.plan.exists():
        waiting = _waiting(listing, task)
        if run.code.is_symlink():  # an earlier start, or a submit of this run alone, was killed on its way through here
            run.code.unlink()
        shutil.rmtree(run.code, ignore_errors=True)
        run.code.symlink_to(listed["code"]["root"])
        write_json(run.code_record, listed["code"]["record"])
        write_json(run.data_record, listed["data"][waiting["data"]])
        write_text(run.job, waiting["job"])
        write_json(run.slurm_job, {"job_id": job, "logs": str(listing.parent)})
        write_json(run.plan, waiting["plan"])  # the last, for it tells that all is there
    return run, listed["script"].replace(runs[0].run_id, run.run_id)


def write_job(run: RunDir) -> None:
    """Writes job.yaml of a point that waits, or waited in vain, for one who goes on with it by its own name. Raises OSError."""
    if not run.job.exists() and (found := _newest(run)):
        run.job.write_text(_waiting(*found)["job"])


def job_of(run: RunDir) -> dict[str, Any] | None:
    """{job_id, logs} of the newest Slurm job that the run was queued as: by its own record; where it has not begun, by its sweep's
    arrays. None: it was never queued."""
    if own := read_json(run.slurm_job):
        return dict(own)
    if not run.attempts.exists() and (found := _newest(run)):
        listing, task = found
        return {"job_id": f"{read_json(listing)['job_id']}_{task}", "logs": str(listing.parent)}
    return None


def jobs(runs: Path) -> dict[str, str]:
    """By run_id, the job of each task of all arrays of the sweeps in `runs`; of several, of the newest."""
    sweeps = [SweepDir(runs / name) for name in os.listdir(runs) if ".sweep" in name] if runs.exists() else []
    arrays = sorted((array for sweep in sweeps for array in _arrays(sweep)), key=lambda array: array[1]["time"])
    return {run_id: f"{listed['job_id']}_{task}" for _, listed in arrays for task, run_id in enumerate(listed["runs"])}


def _arrays(sweep: SweepDir) -> list[tuple[Path, dict[str, Any]]]:
    """The listings of a sweep that became jobs."""
    found = ((path, read_json(path)) for path in sweep.slurm.glob("points-*.json"))
    return [(path, listed) for path, listed in found if listed and listed.get("job_id")]


def _newest(run: RunDir) -> tuple[Path, int] | None:
    """The newest listing of its sweep that the run stands in, and where."""
    if not (sweep := (read_json(run.config) or {}).get("sweep")):
        return None
    having = [(p, listed) for p, listed in _arrays(SweepDir(run.path.parent / sweep)) if run.run_id in listed["runs"]]
    path, listed = max(having, key=lambda array: array[1]["time"], default=(None, None))
    return (path, listed["runs"].index(run.run_id)) if path and listed else None


def _runs(listing: Path, listed: dict[str, Any]) -> list[RunDir]:
    return [RunDir(listing.parents[2] / run_id) for run_id in listed["runs"]]


def _waiting(listing: Path, task: int) -> dict[str, Any]:
    with listing.with_suffix(".jsonl").open(encoding="utf-8") as lines:
        return dict(json.loads(next(islice(lines, task, None))))
