"""What `batchyard status` shows: one row a run, from the run directories and one question to Slurm."""

from __future__ import annotations

import time

from rich.console import Console
from rich.table import Table

from launch import rundir
from launch.rundir import Standing
from trainer.config.layout import RunDir, read_json
from trainer.config.outcome import Outcome

COLOURS = {"completed": "green", "failed": "red", "dead": "red", "running": "cyan", "queued": "yellow", "stopped": "yellow"}


def standings(runs: list[RunDir]) -> dict[str, Standing]:
    """Where each run stands, by run_id. Slurm is asked once, and only where a run was submitted to it."""
    jobs = [str(job["job_id"]) for run in runs if (job := read_json(run.slurm_job))]
    states = None
    if jobs:
        from launch import slurm

        states = slurm.states(jobs)
    return {run.run_id: rundir.standing(run, states) for run in runs}


def show(runs: list[RunDir], console: Console) -> None:
    """Prints the table of all runs, the newest last."""
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "step", "test accuracy", "where", "started"):
        table.add_column(column, justify="right" if column in ("step", "test accuracy") else "left", overflow="fold")
    where_all = standings(runs)
    for run in runs:
        where = where_all[run.run_id]
        row = progress_cells(run, where)
        table.add_row(run.run_id, f"[{COLOURS.get(where.state, 'white')}]{where.state}[/]", *row)
    console.print(table)


def progress_cells(run: RunDir, where: Standing) -> tuple[str, str, str, str]:
    """step/total, test accuracy, where, started."""
    progress = rundir.progress(run)
    outcome = where.outcome
    accuracy = outcome.test_accuracy if outcome and outcome.test_accuracy is not None else progress["test_accuracy"]
    step = outcome.global_step if outcome and outcome.global_step is not None else progress["step"]
    record = read_json(where.attempt.record) if where.attempt else None
    started = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"])) if record else "-"
    return (
        f"{step if step is not None else '-'}/{progress['total'] or '?'}",
        f"{100 * accuracy:.2f} %" if accuracy is not None else "-",
        where.where or "-",
        started,
    )


def show_one(run: RunDir, console: Console) -> None:
    """Prints all that there is to say about one run."""
    where = standings([run])[run.run_id]
    step, accuracy, place, _ = progress_cells(run, where)
    console.print(f"[bold]{run.run_id}[/]  [{COLOURS.get(where.state, 'white')}]{where.state}[/]")
    for label, value in (("step", step), ("test accuracy", accuracy), ("where", place), ("directory", run.path)):
        console.print(f"  {label:14} {value}", highlight=False, soft_wrap=True)
    if where.outcome and where.outcome.cause:
        console.print(f"  {'cause':14} {where.outcome.cause}", highlight=False, markup=False, soft_wrap=True)
    if where.outcome and where.outcome.hint:
        console.print(f"  {'to try':14} {where.outcome.hint}", highlight=False, markup=False, soft_wrap=True)
    for attempt in run.all_attempts():
        end = Outcome.read(attempt.outcome)
        said = f"{end.status} ({end.verdict}) at step {end.global_step}" if end else "left no outcome"
        if where.state == "running" and where.attempt == attempt:
            said = "running"
        console.print(f"  {attempt.id:14} {said}", highlight=False, markup=False, soft_wrap=True)
