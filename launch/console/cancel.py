"""Runs are cancelled: what runs stops after a checkpoint, what waits leaves the queue."""

from __future__ import annotations

from launch.errors import Failed
from launch.runs.find import NoSuchRun
from launch.runs.state import Standing, owner_pid
from launch.text import echo
from trainer.config.files.layout import RunDir


def cancel_runs(runs: list[RunDir], standings: dict[str, Standing], *, now: bool = False) -> int:
    """Stops those that run or wait; returns how many.

    One that cannot be stopped keeps no other from it.

    Raises NoSuchRun, or SlurmError, for the last such.
    """
    alive = [run for run in runs if standings[run.run_id].is_active]
    problems: list[Exception] = []
    for run in runs:
        if standings[run.run_id].state == "unreadable":
            problems.append(_not_cancelled(run, standings[run.run_id]))
    for run in alive:
        try:
            cancel_run(run, standings[run.run_id], now=now)
        except (NoSuchRun, Failed) as error:
            problems.append(error)
    for problem in problems[:-1]:
        echo(f"batchyard: {problem}", err=True)
    if problems:
        raise problems[-1]
    return len(alive)


def _not_cancelled(run: RunDir, standing: Standing) -> Failed:
    return Failed(f"{run.run_id} cannot be cancelled; unreadable: {standing.where}")


def cancel_run(found: RunDir, standing: Standing, *, now: bool = False) -> None:
    """Stops one run.

    Raises NoSuchRun where it does not run, or runs elsewhere; Failed where it cannot be known.
    """
    if standing.state == "unreadable":
        raise _not_cancelled(found, standing)
    if not standing.is_active:
        raise NoSuchRun(f"{found.run_id} does not run, nothing to cancel: it is {standing.state}")
    from launch.backends import local

    in_slurm = standing.state == "queued" or (
        standing.attempt and standing.attempt.id.startswith("slurm-")
    )
    if standing.slurm_job and in_slurm:
        from launch.backends import queue

        # raises before anything is written
        state = queue.states([standing.slurm_job]).get(standing.slurm_job, "gone")
        local.write_cancel(found, standing.attempt.id if standing.attempt else None)
        queue.cancel(standing.slurm_job, state, now=now)
        _say_cancelled(found, standing, now=now)
        return
    local.write_cancel(found, standing.attempt.id if standing.attempt else None)
    if pid := owner_pid(standing):
        local.cancel(pid, now=now)
    else:
        found.cancel.unlink()
        raise NoSuchRun(f"{found.run_id} runs as {standing.where}: cancel it there")
    _say_cancelled(found, standing, now=now)


def _say_cancelled(found: RunDir, standing: Standing, *, now: bool) -> None:
    how = "is ended" if now else "stops after a checkpoint"
    echo(
        f"{found.run_id} ({standing.where}) {how}; batchyard status {found.run_id} tells when"
        " it has"
    )
