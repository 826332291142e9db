"""export: a run's weights, or its model, for other programs, written by the run's own Python and
code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from launch import text
from launch.cli import options
from launch.cli.options import RunOptions
from launch.submit import tools
from launch.text import echo

FORMATS = ("safetensors", "onnx", "torch-export")


@click.command("export")
@options.for_runs
@options.trust
@click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default=FORMATS[0],
    show_default=True,
    help=(
        "The weights alone; or the model with its normalisation, as a program that needs no"
        " Batchyard."
    ),
)
@click.option(
    "--best",
    is_flag=True,
    help="The checkpoint that was best on the validation split, not the newest one.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The file to write; else latest.safetensors, .onnx or .pt2 in the run's directory.",
)
@click.argument("run")
def export_(
    *,
    form: str,
    best: bool,
    out: Path | None,
    **given: Any,
) -> None:
    """Write RUN's weights or model as a file and print its path.

    A run that goes on is not disturbed.

    In the file stand the classes and what becomes of a picture before the model. A program is read
    back and held against the model's own scores before it appears.
    """
    found, used = RunOptions(**given).find()
    asked = [
        "--checkpoint",
        "best" if best else "latest",
        *(["--out", str(out.absolute())] if out else []),
    ]
    if form != FORMATS[0]:  # the code of older runs knows no other, and not the option
        asked += ["--format", form]
    result = tools.tool(found, tools.python_of(found, used), "export", *asked, needs="safetensors")
    echo(result.stderr, nl=False, err=True)
    written = json.loads(result.stdout)
    what = (
        f"{written['tensors']} tensors"
        if form == "safetensors"
        else f"{form}, at most {written['largest_difference']:.1g} from the model's own scores"
    )
    echo(
        f"{text.shown(written['file'])}: {what}, {written['bytes'] / 1e6:.1f} MB, from "
        f"{written['checkpoint']}, weights_sha256 {written['weights_sha256'][:16]}"
    )
