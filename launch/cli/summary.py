"""summary: a job's model, layer by layer."""

from __future__ import annotations

from typing import Any

import click
from rich.table import Table

from launch import environment
from launch.cli import options
from launch.cli.options import JobOptions
from launch.spec import load
from launch.submit import inspection
from launch.text import echo


@click.command("summary")
@click.option(
    "--depth",
    type=click.IntRange(min=1),
    help="Blocks down to so many levels, as one row each; else every layer.",
)
@click.option(
    "--fallback",
    is_flag=True,
    help="The model that the job's fallback trains where there is no GPU.",
)
@options.for_jobs
def summary_(*, depth: int | None, fallback: bool, **given: Any) -> None:
    """The layers of JOB's model: output shapes, parameters and FLOPs of one picture.

    Needs neither weights nor memory for them.

    FLOPs: two for each multiplication with its addition in convolutions, linear layers and
    attention.
    """
    request, _ = options.request(JobOptions(**given))
    job = load.load(request.job, request.settings, without_gpu=fallback)
    found = inspection.inspect(request, job, environment.machine())
    table = Table(box=None, pad_edge=False)
    for column, right in (
        ("layer", False),
        ("type", False),
        ("output shape", True),
        ("parameters", True),
        ("FLOPs", True),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in rows(found.model["layers"], depth):
        shape = "x".join(map(str, row["shape"])) if row["shape"] is not None else "-"
        table.add_row(
            row["name"], row["type"], shape, f"{row['parameters']:,}", f"{row['flops']:,}"
        )
    echo("input " + "x".join(map(str, found.model["input"])))
    options.console().print(table, highlight=False)
    echo(inspection.model_line(found))
    if found.problem is not None and not found.model["classes_known"]:
        echo(f"how many classes there are only the data tell: {found.problem}")


def rows(layers: list[dict[str, Any]], depth: int | None) -> list[dict[str, Any]]:
    """Each layer; or, down to `depth` levels, each block: a layer above that level, and what is on
    it.
    """
    if depth is None:
        return [row for row in layers if row["leaf"]]
    return [
        row for row in layers if row["depth"] == depth or (row["leaf"] and row["depth"] < depth)
    ]
