"""predict: what a run's model says of pictures, asked of it by the run's own Python and code."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from launch.cli import options
from launch.cli.options import RunOptions
from launch.submit import tools
from launch.text import echo
from trainer.config.files.outcome import EXIT_FAILED

MOST_CLASSES = 5
WHICH = {"best": ", the best one on the validation split", "latest": ", the last one"}


@click.command("predict")
@options.for_runs
@options.trust
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder for the labelled pictures; else the run's.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object instead of a line a picture."
)
@click.argument("run")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE|FOLDER...")
def predict_(
    *,
    pictures: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Show pictures to RUN's model: its best weights on the validation split where it has one, else
    its last.

    Writes a labelled picture for each, <name>.predicted.png, and of a segmentation the mask of the
    whole picture, <name>.mask.png, below the run's folder predicted/: a folder of pictures may be a
    data set. Exit code 1 where a picture cannot be read.
    """
    found, used = RunOptions(**given).find()
    asked = ("--out", str(out or found.predicted), "--", *pictures)
    result = tools.tool(found, tools.python_of(found, used), "predict", *asked, needs="torch")
    echo(result.stderr, nl=False, err=True)
    told = json.loads(result.stdout)
    unread = [p for p in told["pictures"] if "problem" in p]
    if as_json:
        echo(json.dumps(told, indent=2))
    else:
        which = WHICH.get(told.get("which"), "")  # the code of older runs does not tell
        echo(f"{told['run_id']} {told['checkpoint']}{which}, {len(told['classes'])} classes")
        for picture in told["pictures"]:
            if "problem" not in picture:
                echo(line(picture))
    for picture in unread:
        echo(f"{picture['file']}: {picture['problem']}", err=True)
    sys.exit(EXIT_FAILED if unread else 0)


def line(picture: dict[str, Any]) -> str:
    """A picture's most probable classes, or those with the most pixels, and where the labelled one
    is.
    """
    if "mask" in picture:
        named = [(c["class"], c["share"]) for c in picture["classes"][:MOST_CLASSES]]
    else:
        named = [(c["class"], c["probability"]) for c in picture["top"]]
    return (
        f"{picture['file']}: {', '.join(f'{name} {part:.1%}' for name, part in named)} "
        f" {picture['labelled']}"
    )
