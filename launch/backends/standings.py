"""Where runs stand, with what Slurm's queue says of them."""

from __future__ import annotations

from launch.runs import records, state
from launch.runs.records import Unreadable
from launch.runs.state import Standing
from launch.slurm_commands import NotHere, OtherCluster, SlurmError
from trainer.config.files.file_clock import Clock
from trainer.config.files.layout import RunDir

Silence = SlurmError | OtherCluster


def look(
    runs: list[RunDir], clock: Clock | None = None
) -> tuple[dict[str, Standing], Silence | None]:
    """Where each run stands, by run_id, as far as that is known; and why Slurm did not tell what is
    in its queue.

    Slurm is asked once, and only where a run was submitted to it. A run that has a bad file is
    `unreadable`, and keeps no other from being shown. clock: for the ages of other machines' locks;
    this machine's, for commands that write nothing.
    """
    jobs, problems = state.slurm_jobs(runs)
    states, silence = None, None
    if jobs:
        from launch.backends import queue

        try:
            states = queue.states(list(jobs.values()))
        except (SlurmError, OtherCluster) as error:
            silence = error
    return {
        run.run_id: _standing(run, states, jobs, problems.get(run.run_id), clock) for run in runs
    }, silence


def standings(runs: list[RunDir]) -> dict[str, Standing]:
    """Where each run stands, by run_id, for those who start or stop runs by it.

    A machine without squeue is none of the cluster's: what the directories tell counts there.
    Raises SlurmError, and OtherCluster, where a run may be in the queue and Slurm does not answer.
    """
    found, silence = look(runs, state.folder_clock(runs))
    if silence and not isinstance(silence, NotHere):
        submitted, _ = state.slurm_jobs(runs)
        if any(found[run_id].state not in ("completed", "running") for run_id in submitted):
            raise silence
    return found


def _standing(
    run: RunDir,
    states: dict[str, str] | None,
    jobs: dict[str, str],
    problem: Unreadable | None,
    clock: Clock | None,
) -> Standing:
    if problem:
        return unreadable(run, problem)
    try:
        with records.reading(run):
            return state.standing(run, states, jobs, clock)
    except Unreadable as error:
        return unreadable(run, error)


def unreadable(run: RunDir, error: Unreadable) -> Standing:
    """What is shown of a run that has a bad file."""
    return Standing("unreadable", where=error.within(run.path))
