"""Job arrays: the points of a sweep and the trials of a search, in pieces that Slurm accepts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import slurm_commands as commands
from launch.backends.queue import largest_array, states
from launch.backends.slurm import (
    command,
    executor_of,
    intended,
    intent_file,
    parameters_to_wait,
    queued,
    sbatch,
    script,
)
from launch.runs import array_listing, frozen_code, records
from launch.runs.array_listing import Task
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import SweepDir

if TYPE_CHECKING:
    # which may hold all that a job does: `status` asks only for states
    from launch.plan.build import Plan


@dataclass(frozen=True)
class Piece:
    """Points start..stop of a sweep as one job array, of which at most `at_once` tasks run. after:
    the number of the piece that must have ended before; None: none.
    """

    start: int
    stop: int
    at_once: int
    after: int | None


def pieces(points: int, largest: int, at_once: int) -> list[Piece]:
    """Cuts a sweep into arrays of at most `largest` tasks, as even as can be, none of whose tasks
    run beyond `at_once` together.

    Arrays do not know of each other's limits: so they are chained into lanes, whose limits add up
    to `at_once`.
    """
    count = -(-points // largest)
    lanes = min(count, at_once)
    limits = [at_once // lanes + (lane < at_once % lanes) for lane in range(lanes)]
    return [
        Piece(
            points * i // count,
            points * (i + 1) // count,
            limits[i % lanes],
            i - lanes if i >= lanes else None,
        )
        for i in range(count)
    ]


def submit_sweep(
    points: Sequence[tuple[Task, Plan]],
    sweep: SweepDir,
    code: dict[str, Any],
    data: list[dict[str, Any]],
    at_once: int,
) -> list[str]:
    """Queues the points of a sweep as job arrays; returns the arrays' ids. code, data: as
    `array_listing.write` takes them.

    Raises SlurmError; what was queued before it stays, and is recorded.
    """
    folder, ids = sweep.slurm, list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    cut, listings = pieces(len(points), largest_array(), at_once), []
    for piece in cut:
        first, plan = points[piece.start]
        of_piece = [task for task, _ in points[piece.start : piece.stop]]
        listings.append(array_listing.write(sweep, of_piece, script(first.run, plan), code, data))
    os.sync()  # what the jobs will read is on the disk before they are in the queue
    for piece, listing in zip(cut, listings, strict=True):
        plan = points[piece.start][1]
        behind = [] if piece.after is None else [ids[piece.after]]
        ids.append(
            _submit_array(
                sweep, plan, piece, command(listing, Path(code["root"]), plan), listing, behind
            )
        )
        _record(listing, ids[-1])
        intent_file(folder).unlink(missing_ok=True)
    return ids


def _record(listing: Path, job: str) -> None:
    for run, of_task in array_listing.queued(listing, job):
        queued(run, of_task, listing.parent, sync=False)
    os.sync()


def submit_trials(
    sweep: SweepDir, plan: Plan, code: Path, tasks: int, at_once: int, behind: Sequence[str]
) -> list[str]:
    """Queues job arrays of a search, whose tasks choose their trials as they begin, behind other
    jobs; returns the arrays' ids.

    plan: of a run as they will be. Raises SlurmError; what was queued before it stays, and is
    recorded.
    """
    # earlier versions had it elsewhere, and a search may be frozen with one
    module = frozen_code.module_of(code, "launch.sweeps.trial", "launch.trial")
    if module is None:
        raise commands.SlurmError(f"{code} has no launch.sweeps.trial: --new starts another search")
    ids = list[str]()
    sweep.slurm.mkdir(parents=True, exist_ok=True)
    for piece in pieces(tasks, largest_array(), at_once):
        listing = sweep.slurm / f"trials-{uuid.uuid4().hex[:12]}.json"
        write_json(listing, {"tasks": piece.stop - piece.start})
        start, before = (
            command(sweep.path, code, plan, module),
            (behind if piece.after is None else [ids[piece.after]]),
        )
        ids.append(_submit_array(sweep, plan, piece, start, listing, before))
        write_json(listing, {"tasks": piece.stop - piece.start, "job_id": ids[-1]})
        intent_file(sweep.slurm).unlink(missing_ok=True)
    return ids


def waiting_trials(sweep: SweepDir) -> list[str]:
    """The tasks of a search's arrays that are in the queue and have not chosen a trial.

    Raises SlurmError.
    """
    arrays = [
        found
        for p in sweep.slurm.glob("trials-*.json")
        if "job_id" in (found := records.read(p, records.TRIALS) or {})
    ]
    tasks = [f"{array['job_id']}_{task}" for array in arrays for task in range(array["tasks"])]
    return [job for job in states([job for job in tasks if not sweep.chosen(job).exists()])]


def _submit_array(
    sweep: SweepDir, plan: Plan, piece: Piece, start: str, listing: Path, behind: Sequence[str]
) -> str:
    """Submits one job array; returns its id. start: what srun starts; behind: jobs that must have
    ended before.
    """
    executor = executor_of(sweep.slurm, plan)
    more = {
        "job_name": sweep.sweep_id,
        "map_count": piece.stop - piece.start,
        "array_parallelism": piece.at_once,
    }
    executor.parameters.update(
        more, **parameters_to_wait(plan, *(f"afterany:{job}" for job in behind))
    )
    return sbatch(executor._make_submission_file_text(start, ""), sweep.slurm, plan, listing)


def adopt_sweep(sweep: SweepDir) -> None:
    """Likewise for the array that was being queued."""
    intent = records.read(intent_file(sweep.slurm), records.INTENT) or {}
    if job := intended(intent, sweep.slurm):
        listing = Path(intent["listing"])
        listed = read_json(listing) or {}
        if "tasks" in listed:  # which choose their trials
            write_json(listing, {**listed, "job_id": job})
        elif listed:
            _record(listing, job)
    intent_file(sweep.slurm).unlink(missing_ok=True)
