"""status, why, logs, cancel, report: the verbs about runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from launch import environment
from launch.cli import options
from launch.console import status
from launch.errors import Failed
from launch.runs import find, records, sweep_records
from launch.runs.find import NoSuchRun, Standing
from launch.runs.records import Unreadable
from launch.slurm_commands import NotHere
from launch.text import echo, echo_log, plain
from trainer.config.files.layout import Attempt, RunDir, SweepDir, open_file


@click.command("status")
@options.for_runs
@click.argument("run", required=False)
def status_(run: str | None, site_file: Path | None, runs_dir: Path | None) -> None:
    """Where all runs stand, or one RUN with its attempts, or the points of a sweep."""
    runs = options.runs_folder(site_file, runs_dir)
    if run and (sweep := sweep_records.find(run, runs)):
        from launch.console import sweep as sweeps

        sweeps.status(sweep)
        return
    if run:
        status.show_one(find.find(run, runs))
        return
    found = find.all_runs(runs)
    if not found:
        echo(f"no runs in {environment.shown(runs)} yet: batchyard submit JOB makes one")
        return
    status.show(found)


@click.command("why")
@options.for_runs
@click.argument("run")
def why_(run: str, site_file: Path | None, runs_dir: Path | None) -> None:
    """Why RUN waits, runs, stalls, stopped or failed, and what to try: five lines or fewer."""
    from launch.console import why

    runs = options.runs_folder(site_file, runs_dir)
    found = find.find(run, runs)
    standings, silence = status.look([found])
    try:
        with records.reading(found):
            lines = why.answer(found, standings[found.run_id])
    except Unreadable as error:
        lines = why.answer(found, status.unreadable(found, error))
    for line in lines:
        echo(plain(line))
    status.tell(silence, standings.values())


@click.command("logs")
@options.for_runs
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on until the run ends; Ctrl-C stops the watching, not the run.",
)
@click.option("--rank", type=click.IntRange(min=0), default=0, show_default=True)
@click.argument("run")
def logs_(
    *, run: str, follow: bool, rank: int, site_file: Path | None, runs_dir: Path | None
) -> None:
    """What one rank of RUN's newest attempt printed; what torchrun printed where the rank left
    nothing.
    """
    from launch.console.follow import Tail

    runs = options.runs_folder(site_file, runs_dir)
    found = sweep_records.run_of(run, runs)
    tail, shown = None, None
    while True:
        standings, silence = status.look([found])
        standing = standings[found.run_id]
        attempt = _newest_attempt(found, standing)
        if attempt is not None and attempt != shown:
            shown, tail = attempt, Tail(attempt.rank_log(rank))
            echo(f"# {found.run_id} {attempt.id}, rank {rank}", err=True)
        for line in tail.new_lines() if tail else []:
            echo_log(line)
        may_run = standing.is_active or (
            standing.state == "unknown" and not isinstance(silence, NotHere)
        )
        if not follow or not may_run:
            break
        time.sleep(0.3)
    if shown is None:
        echo(f"{found.run_id} has not started: {standing.where or standing.state}", err=True)
        status.tell(silence)
    elif not shown.rank_log(rank).exists():
        log = shown.node_log(0)
        echo(f"# rank {rank} left no log; {environment.shown(log)}:", err=True)
        if log.exists():
            with open_file(log) as file:
                for line in file.read().splitlines():
                    echo_log(line)
        else:
            echo("(nothing)", err=True)


def _newest_attempt(run: RunDir, standing: Standing) -> Attempt | None:
    """Of a run that has a bad file, too: its logs may tell more."""
    if standing.state != "unreadable":
        return standing.attempt
    echo(f"# {run.run_id} is unreadable: {standing.where}", err=True)
    attempts = run.all_attempts()
    return attempts[-1] if attempts else None


@click.command("cancel")
@click.option(
    "--now",
    is_flag=True,
    help="At once, without a checkpoint: what was done since the last one is lost.",
)
@options.for_runs
@click.argument("run", metavar="RUN|JOB|SWEEP")
def cancel_(*, run: str, now: bool, site_file: Path | None, runs_dir: Path | None) -> None:
    """Stop RUN after a checkpoint. It is not requeued; submitting the job again continues it.

    Of a sweep, its points, and no further one begins; of a job, all its runs that run or wait, and
    its sweeps.
    """
    runs = options.runs_folder(site_file, runs_dir)
    # a sweep's own id names no job: that one is found below
    active, problems = list[SweepDir](), list[Unreadable]()
    for sweep in sweep_records.of_job(run, runs):
        try:
            active += [sweep] if _cancel_sweep(sweep, now=now) else []
        except Unreadable as error:
            problems.append(error)
    points = {point.run_id for sweep in active for point in sweep_records.runs(sweep)}
    others = [r for r in find.of_job(run, find.all_runs(runs)) if r.run_id not in points]
    standings = status.standings(others)
    if problems:  # the others are stopped all the same
        cancel_runs(others, standings, now=now)
        raise problems[0]
    if not cancel_runs(others, standings, now=now) and not active:
        if newest := sweep_records.find(run, runs):
            if not _cancel_sweep(newest, now=now):
                raise NoSuchRun(f"{newest.sweep_id} does not run, nothing to cancel")
            return
        found = find.find(run, runs)
        cancel_run(found, status.standings([found])[found.run_id], now=now)


def _cancel_sweep(sweep: SweepDir, *, now: bool) -> bool:
    # with all that a spec may hold, which a single run's cancel does not wait for
    from launch.console import sweep as sweeps

    return sweeps.cancel(sweep, now=now)


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
        from launch.backends import slurm

        # raises before anything is written
        state = slurm.states([standing.slurm_job]).get(standing.slurm_job, "gone")
        local.write_cancel(found, standing.attempt.id if standing.attempt else None)
        slurm.cancel(standing.slurm_job, state, now=now)
        _say_cancelled(found, standing, now=now)
        return
    local.write_cancel(found, standing.attempt.id if standing.attempt else None)
    if pid := find.owner_pid(standing):
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


@click.command("report")
@options.for_runs
@click.argument("run")
def report_(run: str, site_file: Path | None, runs_dir: Path | None) -> None:
    """Make the report page of RUN, or of a sweep, and print its path."""
    from launch import report

    runs = options.runs_folder(site_file, runs_dir)
    sweep = sweep_records.find(run, runs)
    echo(
        environment.shown(
            report.write_sweep(sweep) if sweep else report.write(find.find(run, runs))
        )
    )
