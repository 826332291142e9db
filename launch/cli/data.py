"""data: what a job's data hold, a look at them, and how fast they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from launch import environment, text
from launch.cli import options
from launch.cli.options import JobOptions
from launch.console import table
from launch.spec import load
from launch.submit import tools
from launch.text import echo

MOST_CLASSES = 40  # rows of the table


@click.command("data")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    help="Read with 0 up to so many workers; else up to the CPUs, 4 at most.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The picture with the grid; else <job>-data.png, here.",
)
@click.option(
    "--fallback",
    is_flag=True,
    help="The data that the job's fallback trains on where there is no GPU.",
)
@options.for_jobs
def data_(*, workers: int | None, out: Path | None, fallback: bool, **given: Any) -> None:
    """JOB's data: classes, counts, shapes, a grid of train pictures, and one epoch read and timed
    with each number of workers.

    Prepares them where the cache lacks them, as submit does. A reading ends after a minute; the
    epoch is then estimated.
    """
    request, _ = options.request(JobOptions(**given))
    job = load.load(request.job, request.settings, without_gpu=fallback)
    request.folders.cache.mkdir(parents=True, exist_ok=True)
    asked = ["--data-dir", str(request.folders.data), "--cache-dir", str(request.folders.cache)]
    asked += ["--out", str(out or f"{request.job.name}-data.png")]
    asked += ["--workers", str(workers)] if workers is not None else []
    result = tools.ask_of_job(request, job, environment.machine(), "dataset", *asked)
    echo(result.stderr, nl=False, err=True)
    told = json.loads(result.stdout)
    for line in lines(told):
        echo(line)
    if told["classes"]:
        table.show((told["counted"], *told["splits"]), classes(told), left=(told["counted"],))
    table.show(
        ("one epoch read", "seconds", "samples/s", "first batch, s"),
        reads(told),
        left=("one epoch read",),
    )


def lines(told: dict[str, Any]) -> list[str]:
    """What the data are, in a few lines."""
    given, prepared = ("x".join(map(str, told[name])) for name in ("given", "prepared"))
    size = given if given == prepared else f"{given}, made of {prepared}"
    splits = ", ".join(f"{split['samples']:,} {name}" for name, split in told["splits"].items())
    found = [
        f"{told['name']}: {splits}; each {size}"
        + (f"; {len(told['classes'])} classes" if told["classes"] else "")
    ]
    found.append(
        "mean "
        + " ".join(f"{m:.4f}" for m in told["mean"])
        + ", std "
        + " ".join(f"{s:.4f}" for s in told["std"])
    )
    if told["skipped"]:
        found.append(f"{told['skipped']} picture(s) cannot be used and are left out")
    found += told.get("notes", [])
    found.append(f"prepared {'now' if told['made'] else 'before'} in {text.shown(told['path'])}")
    return [
        *found,
        *(
            [f"train pictures as the model is given them: {text.shown(told['grid'])}"]
            if told["grid"]
            else []
        ),
    ]


def classes(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """How many samples (or pixels) of each class each split has."""
    splits = told["splits"].values()
    rows = [
        (name, *(f"{split['counts'][number]:,}" for split in splits))
        for number, name in enumerate(told["classes"])
    ]
    if (more := len(rows) - MOST_CLASSES) > 0:
        rows[MOST_CLASSES:] = [
            (f"and {more} more", *(f"{sum(split['counts'][MOST_CLASSES:]):,}" for split in splits))
        ]
    return rows


def reads(told: dict[str, Any]) -> list[tuple[str, ...]]:
    """How long an epoch of the train split takes to read, and its samples a second."""
    rows: list[tuple[str, ...]] = []
    for read in told["reads"]:
        how = (
            "from the device's memory (CPU)"
            if read["workers"] is None
            else f"{read['workers']} worker(s)"
        )
        about = "" if read["whole"] else "about "
        speed = read["samples"] / read["seconds"]
        rows.append(
            (how, f"{about}{read['epoch_s']:.2f}", f"{speed:,.0f}", f"{read['first_s']:.2f}")
        )
    return rows
