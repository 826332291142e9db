"""drill: kill a job many times, continue it each time, and compare it with an undisturbed run."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from launch import environment, text
from launch.cli import options
from launch.drill import kills as drill
from launch.drill.cluster import SlurmDrill
from launch.slurm_commands import SlurmError
from launch.spec import load
from launch.text import echo
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_WRONG


@dataclass(frozen=True)
class DrillOptions:
    """What is read from the command line."""

    job: str
    kills: int
    seed: int
    nproc: int | None
    steps: int
    settings: tuple[str, ...]
    data_dir: Path | None
    backend: str
    timeout_min: int | None
    preempt_with: str | None
    cut_with: str | None
    site_file: Path | None
    runs_dir: Path | None

    def refuse_slurms_alone(self) -> None:
        """Raises UsageError where an option is of a drill on Slurm, and this is none."""
        if self.backend == "local" and (self.timeout_min or self.preempt_with or self.cut_with):
            raise click.UsageError(
                "--timeout-min, --preempt-with and --cut-with are for --backend slurm"
            )

    def submit_arguments(self) -> list[str]:
        """The arguments of `submit`, after the job's name."""
        settings = [f"train.max_steps={self.steps}"]
        if self.nproc:
            settings.append(f"resources.nproc_per_node={self.nproc}")
        settings += self.settings
        arguments = [part for setting in settings for part in ("--set", setting)]
        arguments += ["--backend", self.backend]
        if self.site_file:
            arguments += ["--site", str(self.site_file)]
        if self.data_dir:
            arguments += ["--data-dir", str(self.data_dir)]
        return arguments

    def drill(self, folder: Path) -> drill.Drill:
        """The drill of the chosen backend, whose runs are in `folder`."""
        common = (self.job, self.submit_arguments(), folder, self.kills, self.seed)
        if self.backend == "local":
            return drill.Drill(*common)
        return SlurmDrill(*common, self.preempt_with, self.cut_with, self.timeout_min)


@click.command("drill")
@click.option("--kills", type=click.IntRange(min=1), default=10, show_default=True)
@click.option(
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Of the kills: which, and at which steps.",
)
@click.option("--nproc", type=click.IntRange(min=1), help="Ranks; else the job's.")
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=400,
    show_default=True,
    help="The most steps that the job is run for.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, as in train.epochs=3.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the raw data sets lie.")
@click.option(
    "--backend", type=click.Choice(["local", "slurm"]), default="local", show_default=True
)
@click.option(
    "--timeout-min",
    type=click.IntRange(min=1),
    help="Slurm: the time limit of each disturbed attempt; else the job's.",
)
@click.option(
    "--preempt-with",
    metavar="OPTIONS",
    help="Slurm: sbatch options of a job that preempts, as '--qos=high'.",
)
@click.option(
    "--cut-with",
    metavar="COMMAND",
    help="Slurm: cuts the power of the node whose name is put behind it.",
)
@options.for_runs
@click.argument("job")
def drill_(**given: Any) -> None:
    """Run JOB once in peace and once killed again and again, and compare the weights and
    metrics.jsonl, bit for bit.

    Here: kills a rank, torchrun, everything; asks to stop; kills within a checkpoint's writing. On
    Slurm: preemption (else USR2 and a requeue), the time limit, a power cut. Exit code 1 where
    anything differs.
    """
    asked = DrillOptions(**given)
    asked.refuse_slurms_alone()
    runs = options.runs_folder(asked.site_file, asked.runs_dir)
    name = load.find(asked.job, environment.project()).name
    folder = runs / f"{name}.drill"
    echo(
        f"{name}: an undisturbed run, then {asked.kills} kills (seed {asked.seed}) in"
        f" {text.shown(folder)}"
    )
    echo(f"{'':4}{'kill':40}{'asked at':>9}{'reached':>9}  attempt    seconds")
    number = 0

    def tell(killed: drill.Killed) -> None:
        nonlocal number
        number += 1
        place = f"{killed.kill.step:9}{killed.reached:9}"
        echo(f"{number:3} {killed.kill!s:40}{place}  {killed.attempt:10} {killed.seconds:7.1f}")

    try:
        result = asked.drill(folder).carry_out(tell)
    except (drill.DrillError, SlurmError) as error:
        echo(f"batchyard: {error}", err=True)
        sys.exit(EXIT_WRONG)
    _conclude(result)
    sys.exit(EXIT_DONE if result.equal else EXIT_FAILED)


def _conclude(result: drill.Result) -> None:
    counts = Counter(killed.kill.kind for killed in result.kills)
    echo("kills: " + ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    before, after = result.weights
    same = "the same" if before == after else f"DIFFERENT, now {after}"
    echo(f"weights_sha256: {before}, {same}")
    echo(
        f"metrics.jsonl: {result.rows} rows, "
        + ("the same bytes" if result.first_difference is None else "DIFFERENT")
    )
    if result.first_difference:
        echo(f"first difference: {result.first_difference}")
    echo(f"checkpoints that could not be read: {', '.join(result.spoilt) or 'none'}")
    echo("attempts: " + ", ".join(f"{count} {end}" for end, count in Counter(result.ends).items()))
    echo(f"processes left: {'; '.join(result.left_alive) or 'none'}")
