"""status, why, logs, cancel, report: the verbs about runs."""

from __future__ import annotations

import time
from pathlib import Path

import click

from launch import text
from launch.backends import standings as backends_standings
from launch.cli import options
from launch.console import status
from launch.console.cancel import cancel_run, cancel_runs
from launch.runs import find, records, sweep_records
from launch.runs.find import NoSuchRun
from launch.runs.records import Unreadable
from launch.runs.state import Standing
from launch.slurm_commands import NotHere
from launch.text import echo, echo_log, plain
from trainer.config.files.json_files import open_file
from trainer.config.files.layout import Attempt, RunDir, SweepDir


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
        echo(f"no runs in {text.shown(runs)} yet: batchyard submit JOB makes one")
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
    standings, silence = backends_standings.look([found])
    try:
        with records.reading(found):
            lines = why.answer(found, standings[found.run_id])
    except Unreadable as error:
        lines = why.answer(found, backends_standings.unreadable(found, error))
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
        standings, silence = backends_standings.look([found])
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
        echo(f"# rank {rank} left no log; {text.shown(log)}:", err=True)
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
    standings = backends_standings.standings(others)
    if problems:  # the others are stopped all the same
        cancel_runs(others, standings, now=now)
        raise problems[0]
    if not cancel_runs(others, standings, now=now) and not active:
        if newest := sweep_records.find(run, runs):
            if not _cancel_sweep(newest, now=now):
                raise NoSuchRun(f"{newest.sweep_id} does not run, nothing to cancel")
            return
        found = find.find(run, runs)
        cancel_run(found, backends_standings.standings([found])[found.run_id], now=now)


def _cancel_sweep(sweep: SweepDir, *, now: bool) -> bool:
    # with all that a spec may hold, which a single run's cancel does not wait for
    from launch.console import sweep as sweeps

    return sweeps.cancel(sweep, now=now)


@click.command("report")
@options.for_runs
@click.argument("run")
def report_(run: str, site_file: Path | None, runs_dir: Path | None) -> None:
    """Make the report page of RUN, or of a sweep, and print its path."""
    from launch import report

    runs = options.runs_folder(site_file, runs_dir)
    sweep = sweep_records.find(run, runs)
    echo(text.shown(report.write_sweep(sweep) if sweep else report.write(find.find(run, runs))))
