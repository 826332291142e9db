"""results: printed figures beside ours, in the terminal, as a page, as JSON."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import click

from launch import environment
from launch.cli import options
from launch.console import table
from launch.report import sweep_data
from launch.results import compare, measurements
from launch.results.compare import Row
from launch.spec import load
from launch.spec.job import Job
from launch.spec.yaml_tree import Problem, SpecError
from launch.text import echo, echo_styled, shown
from launch.words import NONE, plural


@click.command("results")
@click.option(
    "--html",
    "as_html",
    is_flag=True,
    help="Write a page, results.html in the runs' folder, and print its path.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the rows as JSON, each run's own value and run_id in them.",
)
@options.for_runs
@click.argument("jobs", nargs=-1, metavar="[JOB]...")
def results_(
    *,
    jobs: tuple[str, ...],
    as_html: bool,
    as_json: bool,
    site_file: Path | None,
    runs_dir: Path | None,
) -> None:
    """Hold what was measured against the printed figures that JOBS name (all of the project's where
    none is named).

    Ours is the mean over all runs of the job's configuration, whatever their seeds. Red falls
    short; amber was not run in full, or on a stand-in. Of a job that names no figure ours are told
    alone.
    """
    if as_html and as_json:
        raise click.UsageError("--html and --json: choose one")
    folder = options.runs_folder(site_file, runs_dir)
    project = environment.project()
    found, problems, without = _rows(
        [load.find(job, project) for job in jobs] or load.find_all(project), folder
    )
    if as_json:
        echo(json.dumps([row.to_json() for row in found], indent=2, ensure_ascii=False))
    elif as_html:
        from launch.results import results_page as pages

        echo(shown(pages.write(found, folder)))
    elif found:
        show(found)
    if jobs and without:
        echo(
            f"no printed figure (`published` in the job's file), and no run: {', '.join(without)}",
            err=True,
        )
    if problems:
        raise SpecError(problems)


def _rows(jobs: list[Job], folder: Path) -> tuple[list[Row], list[Problem], list[str]]:
    """The rows of the jobs that are right, the mistakes of the others, and the jobs that name no
    figure.
    """
    runs, unread = measurements.read_runs(folder)
    found: list[Row] = []
    problems: list[Problem] = []
    without = []
    for job in jobs:
        try:
            of_job = compare.rows(job, runs)
        except SpecError as error:
            problems += error.problems
            continue
        found += of_job
        if not of_job:
            without.append(job.name)
    for run_id, why in unread.items():
        echo(f"{run_id} is left out; unreadable: {why}", err=True)
    return found, problems, without


def show(found: list[Row]) -> None:
    """Prints the table, and what its colours mean where it has any."""
    header = ("figure", "printed", "ours", "verdict", "notes")
    cells: list[tuple[table.Cell, ...]] = []
    notes: dict[str, int] = {}  # numbered as they come
    for row in found:
        colour = compare.COLOURS[row.verdict]
        ours = (
            sweep_data.spread((row.mean, row.deviation), in_percent=row.in_percent)
            if row.mean is not None
            else NONE
        )
        standing = f"({row.standing})" if row.why and row.standing else row.standing
        verdict = f"{row.verdict} {standing}".rstrip()
        numbers = [notes.setdefault(note, len(notes) + 1) for note in row.footnotes]
        figure = "  " + ", ".join(filter(None, (row.figure, row.label)))
        cells.append(
            (
                figure,
                row.shown(row.published),
                (ours, colour),
                (verdict, colour),
                " ".join(map(str, numbers)),
            )
        )
    width = shutil.get_terminal_size((0, 0)).columns or None  # a pipe has none
    left, fold = ("figure", "verdict", "notes"), ("figure", "verdict")
    first, *lines = table.lines(header, cells, left, fold, width)
    echo_styled(click.style(first, bold=True))
    for heading, group in itertools.groupby(
        zip(found, lines, strict=True), key=lambda pair: _heading(pair[0])
    ):
        echo(heading, bold=True)
        echo_styled("\n".join(line for _, line in group))
    echo("\n" + "\n".join(f"{number:>3}  {text}" for text, number in notes.items()))
    echo(f"{plural(len(found), 'figure')}; ours: mean ± standard deviation over seeds")


def _heading(row: Row) -> str:
    """jobs/digits.yaml: 3 seeds, 15 epochs, 2 threads of AMD EPYC"""
    return ": ".join(filter(None, (shown(row.job_file), row.measured)))
