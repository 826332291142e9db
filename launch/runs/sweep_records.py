"""Sweep directories: found by name, and sweep.json, in which each submit leaves its points."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

from launch.runs import find as rundir
from launch.runs import records
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import local_pid, me

# {started, ended, backend, settings, points, host, boot, pid, start, pidns}
Submit = dict[str, Any]


def sweep_for(job: str, runs: Path, *, new: bool) -> SweepDir:
    """The directory of a job's sweep; new: `<job>.sweep.2`, `.3` ... where `<job>.sweep` exists."""
    sweep, number = SweepDir(runs / f"{job}.sweep"), 1
    while new and sweep.path.exists():
        number += 1
        sweep = SweepDir(runs / f"{job}.sweep.{number}")
    return sweep


def find(name: str, runs: Path) -> SweepDir | None:
    """SWEEP: a sweep's id, or a job's name where the newest run under that name is a point of its
    newest sweep.

    None: it names a run, or nothing.
    """
    exact = SweepDir(runs / name)
    if "/" not in name and exact.record.exists():
        return exact
    if not (known := of_job(name, runs)):
        return None
    newest = max(known, key=lambda s: s.record.stat().st_mtime)
    run = rundir.newest_of_job(name, rundir.all_runs(runs))
    return (
        newest
        if run is None
        or any(p["run_id"] == run.run_id for s in submits(newest) for p in s["points"])
        else None
    )


def of_job(job: str, runs: Path) -> list[SweepDir]:
    """The sweeps of that job."""
    return (
        [SweepDir(p.parent) for p in sorted(runs.glob(f"{escape(job)}.sweep*/sweep.json"))]
        if "/" not in job
        else []
    )


def run_of(name: str, runs: Path) -> RunDir:
    """RUN; of a sweep's id, the point that was submitted last. Raises NoSuchRun."""
    sweep = SweepDir(runs / name)
    begun = (
        [run for _, run_id in recorded(sweep) if (run := sweep.run(run_id)).config.exists()]
        if "/" not in name
        else []
    )
    return (
        max(begun, key=lambda run: run.config.stat().st_mtime) if begun else rundir.find(name, runs)
    )


def submits(sweep: SweepDir) -> list[Submit]:
    """What each submit wanted, the oldest first. Raises Unreadable."""
    found = records.read(sweep.record, records.SWEEP)
    return list(found["submits"]) if found else []


def recorded(sweep: SweepDir) -> list[tuple[dict[str, Any], str]]:
    """(axis values, run_id) of all points of all submits, the oldest first."""
    return [(p["axes"], p["run_id"]) for submit in submits(sweep) for p in submit["points"]]


def runs(sweep: SweepDir) -> list[RunDir]:
    """The runs of all points of all submits, each once; some may never have begun."""
    return [sweep.run(run_id) for run_id in dict.fromkeys(run_id for _, run_id in recorded(sweep))]


def write_job(sweep: SweepDir, written: dict[str, Any]) -> None:
    """Keeps the job as a person wrote it, but for what is not the sweep's own: what it waits for,
    and the figures of others.
    """
    import yaml  # for a submit alone

    kept = {k: v for k, v in written.items() if k not in ("after", "published")}
    sweep.job.write_text(yaml.safe_dump(kept, sort_keys=False))


def begin(
    sweep: SweepDir, job: str, backend: str, settings: tuple[str, ...], points: list[dict[str, Any]]
) -> Submit:
    """Records a submit and its points. Raises SubmitError."""
    submit = {
        "started": time.time(),
        "ended": None,
        "backend": backend,
        "settings": list(settings),
        **me(),
        "points": points,
    }
    with recording(sweep, job) as submits:
        submits.append(submit)
    return submit


def change(sweep: SweepDir, job: str, submit: Submit) -> None:
    """Records what has become of a submit that `begin` returned. Raises SubmitError."""
    with recording(sweep, job) as submits:
        for recorded in (
            s for s in submits if (s["started"], s["pid"]) == (submit["started"], submit["pid"])
        ):
            # another process may have begun trials of a search
            known = {(p["run_id"], p.get("trial")) for p in submit["points"]}
            submit["points"] += [
                p for p in recorded["points"] if (p["run_id"], p.get("trial")) not in known
            ]
        submits[:] = [
            submit if (s["started"], s["pid"]) == (submit["started"], submit["pid"]) else s
            for s in submits
        ]


@contextmanager
def recording(sweep: SweepDir, job: str) -> Iterator[list[Submit]]:
    """All submits, the newest last; what is changed in the list is written at the end.

    One process at a time.

    Raises SubmitError.
    """
    from launch.runs.locks import take

    # two submits may work on one sweep, each on points of its own
    lock = take(sweep.submit_lock, sweep.sweep_id)
    try:
        found = submits(sweep)
        yield found
        lock.verify()
        write_json(sweep.record, {"job": job, "submits": found})
    finally:
        lock.release()


def cancelled(sweep: SweepDir, submit: Submit) -> bool:
    """Whether a person has cancelled the sweep since the submit began."""
    found = records.read(sweep.cancel, records.CANCEL)
    return bool(found and found["time"] > submit["started"])


def is_submitted(sweep: SweepDir) -> bool:
    """Whether a living process of this machine works on the sweep."""
    return any(s["ended"] is None and local_pid(s) is not None for s in submits(sweep))
