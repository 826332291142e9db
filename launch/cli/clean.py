"""clean: what finished runs no longer need, its size first, then, if a person says so, away with
it.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import click

from launch import text
from launch.backends import standings
from launch.cli import options
from launch.runs import clean, find, records, sweep_records
from launch.runs.records import Unreadable
from launch.runs.state import Standing
from launch.text import echo
from launch.words import plural
from trainer.config.files.layout import RunDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import EXIT_FAILED


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> float:
    try:
        return clean.seconds(value) if value else 0.0
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("clean")
@click.option(
    "--older-than",
    metavar="AGE",
    callback=_age,
    help="Only runs that ended so long ago: 90m, 12h, 30d, 2w.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go, and its size; remove nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@options.for_runs
@click.argument("runs", nargs=-1, metavar="[RUN|SWEEP]...")
def clean_(
    *,
    runs: tuple[str, ...],
    older_than: float,
    dry_run: bool,
    yes: bool,
    site_file: Path | None,
    runs_dir: Path | None,
) -> None:
    """Remove what completed runs no longer need: all their checkpoints but the best and the last.

    Metrics, logs, reports, code and outcomes stay, and so does everything of a run that may still
    go on.
    """
    folder = options.runs_folder(site_file, runs_dir)
    found = (
        [run for name in runs for run in _named(name, folder)] if runs else find.all_runs(folder)
    )
    where, _ = standings.look(found)  # what is completed is so whatever Slurm says
    goes = [r for run in found if (r := _removals(run, where[run.run_id], older_than))]
    if not goes:
        echo(
            "nothing to remove: completed runs that are old enough keep no more than their best and"
            " last checkpoint"
        )
        return
    for removal in sorted(goes, key=lambda r: r.size):
        names = ", ".join(str(p.relative_to(removal.run.path)) for p in removal.paths)
        echo(f"{removal.size / 1e6:10.1f} MB  {removal.run.run_id}: {names}")
    total = (
        f"{sum(r.size for r in goes) / 1e6:.1f} MB of {plural(len(goes), 'run')} in"
        f" {text.shown(folder)}"
    )
    if dry_run:
        echo(f"{total} would be removed")
        return
    if not yes and not click.confirm(f"remove {total}?"):
        return
    failed = False
    for removal in goes:
        failed |= not _remove(removal)
    echo(f"removed {total}" if not failed else "not all could be removed")
    sys.exit(EXIT_FAILED if failed else 0)


def _removals(run: RunDir, where: Standing, older_than_s: float) -> clean.Removal | None:
    """What goes of a run; of one with a bad file nothing, which is reported."""
    try:
        with records.reading(run):
            found = clean.removals(run, where, time.time(), older_than_s)
    except Unreadable as error:
        found, where = None, standings.unreadable(run, error)
    if where.state == "unreadable":
        echo(f"{run.run_id} is left as it is; unreadable: {where.where}", err=True)
    return found


def _named(name: str, folder: Path) -> list[RunDir]:
    if sweep := sweep_records.find(name, folder):
        return [run for run in sweep_records.runs(sweep) if run.config.exists()]
    return [find.find(name, folder)]


def _remove(removal: clean.Removal) -> bool:
    """Whether all is gone.

    Under the run's submit lock, so that nobody goes on from what is being removed.
    """
    lock = Lock(removal.run.submit_lock)
    if not lock.acquire():
        echo(f"{removal.run.run_id}: a submit works on it; left alone", err=True)
        return False
    try:
        for path in removal.paths:
            if path.is_dir():
                # a half-removed checkpoint is never taken for a spoilt one
                doomed = path.with_name(f"{path.name}.tmp")
                path.rename(doomed)
                shutil.rmtree(doomed)
            else:
                path.unlink()
    except OSError as error:
        echo(f"{removal.run.run_id}: {error}", err=True)
        return False
    finally:
        lock.release()
    return True
