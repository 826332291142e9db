"""In which state a run is, by its files, its lock and what Slurm's queue said."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch.runs import array_listing, records
from launch.runs.records import Unreadable
from trainer.config.files import file_clock
from trainer.config.files.file_clock import Clock, MachineClock
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.lock import is_of_this_machine, local_pid, read_record
from trainer.config.files.outcome import RETRIES, Outcome

State = Literal[
    "new",
    "queued",
    "running",
    "completed",
    "stopped",
    "pruned",
    "failed",
    "cancelled",
    "dead",
    "unknown",
    "unreadable",
]


# by name, for a Path takes as long to make as its file to look for, and there are thousands of runs
_OF_A_RUN = RunDir(Path())


CONFIG, PLAN, LOCK, CANCEL, ATTEMPTS, SLURM_JOB = (
    str(path)
    for path in (
        _OF_A_RUN.config,
        _OF_A_RUN.plan,
        _OF_A_RUN.lock,
        _OF_A_RUN.cancel,
        _OF_A_RUN.attempts,
        _OF_A_RUN.slurm_job,
    )
)


IN_THE_QUEUE = (
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "CONFIGURING",
    "SUSPENDED",
    "RUNNING",
    "COMPLETING",
)


@dataclass(frozen=True)
class Standing:
    """Where a run stands. where: the attempt and host that run it, or Slurm's job and its state; of
    an unreadable one the file that is bad, and why.
    """

    state: State
    outcome: Outcome | None = None
    attempt: Attempt | None = None
    where: str = ""
    holder: dict[str, Any] | None = None
    slurm_job: str | None = None
    # by which it runs or is dead, where the lock is another machine's
    lock_age_s: float | None = None

    @property
    def is_active(self) -> bool:
        return self.state in ("running", "queued")


def standing(
    run: RunDir,
    slurm_states: dict[str, str] | None = None,
    jobs: dict[str, str] | None = None,
    clock: Clock | None = None,
) -> Standing:
    """Where the run stands. slurm_states: by job id, where Slurm was asked and answered: RUNNING,
    PENDING (Priority). It alone knows what is still queued. jobs: as `slurm_jobs` tells, where that
    was asked. clock: for the ages of other machines' locks; this machine's where none is given.

    Raises Unreadable where one of its files is bad.
    """
    try:
        # most of a thousand runs have hardly begun: what is not there is not asked for
        there = os.listdir(run.path)
    except (FileNotFoundError, NotADirectoryError):
        return Standing("new")
    except OSError as error:
        raise Unreadable(run.path, str(error.strerror)) from None
    found = read_record(run.lock) if LOCK in there and records.is_lock(run.lock) else None
    clock = clock or MachineClock()
    holder = found.holder if found and found.is_alive(clock) else None
    state = _standing(run, there, holder, slurm_states, jobs)
    by_slurm = state.state == "dead" and holder is not None  # the lock's age decided nothing
    if (
        found
        and state.state in ("running", "dead")
        and not by_slurm
        and not is_of_this_machine(found.holder)
    ):
        return replace(state, lock_age_s=clock.now() - found.renewed)
    return state


def folder_clock(runs: list[RunDir]) -> Clock:
    """The clock of the file system that the runs are in, for commands that write there."""
    return file_clock.folder_clock(runs[0].path.parent) if runs else MachineClock()


def _standing(
    run: RunDir,
    there: list[str],
    holder: dict[str, Any] | None,
    slurm_states: dict[str, str] | None,
    jobs: dict[str, str] | None,
) -> Standing:
    """Likewise. there: the names in its directory. holder: of its lock, which is alive."""
    if holder is None and CONFIG not in there:
        return Standing("new")
    records.read(run.config, records.CONFIG)
    job = slurm_job(run) if jobs is None else jobs.get(run.run_id)
    if holder and not _job_is_gone(run, holder, job, slurm_states):
        attempt = run.attempt(str(holder.get("attempt")))
        where = f"{holder.get('attempt')} on {holder.get('host')}"
        return Standing("running", None, attempt, where, holder, job)

    newest, outcome = _newest_end(run, there)
    if job and slurm_states and _is_queued(slurm_states.get(job), outcome):
        where = f"Slurm job {job} {slurm_states[job]}"
        return Standing("queued", None, newest, where, None, job)
    if outcome:
        state = _state_after(outcome, there)
        return Standing(state, outcome, newest, newest.id if newest else "")
    if CANCEL in there:
        return Standing("cancelled", None, newest)
    return _without_outcome(newest, job, slurm_states)


def _newest_end(run: RunDir, there: list[str]) -> tuple[Attempt | None, Outcome | None]:
    """The newest attempt, and the outcome that it left."""
    attempts = run.all_attempts() if ATTEMPTS in there else []
    if not attempts:
        return None, None
    newest = attempts[-1]
    outcome = records.outcome(newest.outcome)
    if outcome is None:
        # an attempt that found the run completed has nothing to tell
        last = records.outcome(run.outcome)
        if last and last.status == "completed":
            return run.attempt(last.attempt), last
    return newest, outcome


def _is_queued(slurm_state: str | None, outcome: Outcome | None) -> bool:
    """Whether Slurm still has to start the run's job. outcome: of the newest attempt."""
    if slurm_state is None:
        return False
    if outcome and outcome.status == "completed":  # whatever Slurm still has to do for its job
        return False
    is_last = outcome is not None and outcome.verdict not in RETRIES
    is_ending = is_last and slurm_state in ("RUNNING", "COMPLETING")
    return not is_ending and slurm_state.split()[0] in IN_THE_QUEUE


def _state_after(outcome: Outcome, there: list[str]) -> State:
    if outcome.verdict == "cancelled" or outcome.verdict == "pruned":
        return outcome.verdict
    # the cancel came when it was stopping already
    if outcome.status == "stopped" and CANCEL in there:
        return "cancelled"
    return outcome.status


def _without_outcome(
    newest: Attempt | None, job: str | None, slurm_states: dict[str, str] | None
) -> Standing:
    """Of a run whose newest attempt left no outcome, and that nobody runs."""
    if newest and (newest.record.exists() or not job):
        return Standing("dead", None, newest, newest.id)
    if job and slurm_states is None:
        return Standing("unknown", None, None, f"Slurm job {job}", None, job)
    if job:  # what was queued has a script at most
        return Standing("dead", None, None, f"Slurm job {job} is gone")
    return Standing("new")


def _job_is_gone(
    run: RunDir, holder: dict[str, Any], job: str | None, slurm_states: dict[str, str] | None
) -> bool:
    """Whether the attempt that holds the run's lock has ended, by Slurm's word: its job has left
    the queue, or is back in it.

    A launch.node that was killed on another machine holds the lock until its lease is over. Where
    another user's job is asked for, silence tells nothing: many clusters hide it (PrivateData).
    """
    if job is None or slurm_states is None or local_pid(holder) is not None:
        return False
    if os.geteuid() not in (0, os.stat(run.lock).st_uid):
        return False
    return str(holder.get("attempt")).startswith(f"slurm-{job}.") and slurm_states.get(
        job, "PENDING"
    ).startswith("PENDING")


def slurm_job(run: RunDir) -> str | None:
    """The id of the newest job that the run was queued as."""
    found = array_listing.job_of(run)
    return str(found["job_id"]) if found else None


def slurm_jobs(runs: list[RunDir]) -> tuple[dict[str, str], dict[str, Unreadable]]:
    """Likewise of many, by run_id, and what is wrong with those whose job cannot be known: each
    sweep's arrays are read once.
    """
    found, problems = dict[str, str](), dict[str, Unreadable]()
    waiting = dict[str, tuple[dict[str, str], dict[str, Unreadable]]]()
    for run in runs:
        folder, run_id = os.path.split(run.path)
        job = None
        try:
            if len(runs) == 1:
                job = slurm_job(run)
            elif not os.path.exists(f"{run.path}/{PLAN}"):  # as array_listing.job_of does
                if folder not in waiting:
                    waiting[folder] = array_listing.jobs(Path(folder))
                listed, bad = waiting[folder]
                job = listed.get(run_id)
                if bad and job is None:
                    config = records.read(run.config, records.CONFIG) or {}
                    if config.get("sweep") in bad:
                        raise bad[config["sweep"]]
            if job is None and (own := records.read(f"{run.path}/{SLURM_JOB}", records.SLURM_JOB)):
                job = str(own["job_id"])
        except Unreadable as error:
            problems[run_id] = error
        if job:
            found[run_id] = job
    return found, problems


def owner_pid(standing_: Standing) -> int | None:
    """The pid of the living process of this machine that runs the attempt; a stale pid is never
    returned.
    """
    return local_pid(standing_.holder) if standing_.holder else None
