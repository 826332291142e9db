"""list, show, check: the verbs that only read job files."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click
import yaml

from launch import environment, text
from launch.cli import options
from launch.cli.options import JobOptions
from launch.slurm_commands import SlurmError
from launch.spec import load
from launch.spec.yaml_tree import Problem, SpecError
from launch.text import echo, plain
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_WRONG


@click.command("list")
def list_() -> None:
    """The jobs of this project, with their descriptions."""
    jobs = load.find_all(environment.project())
    if not jobs:
        echo(f"no jobs in {environment.project() / 'jobs'}")
    width = max((len(job.name) for job in jobs), default=0)
    for job in jobs:
        try:
            line = plain(load.load(job, without_gpu=False).description or "")
        except SpecError as error:
            line = f"({len(error.problems)} mistake(s): batchyard check {job.name})"
        echo(f"{job.name:{width}}  {line}".rstrip())


@click.command("show")
@options.for_jobs
def show_(**given: Any) -> None:
    """What JOB would run: its resolved spec, where it would run, and the exact command or batch
    script. Runs nothing.
    """
    from launch.submit import request as submit

    request, used = options.request(JobOptions(**given))
    loaded, machine = submit.load(request)
    if loaded.search:
        from launch.console import search

        ready = search.show_plan_of(request, loaded, machine)
    elif loaded.is_sweep:
        from launch.console import sweep

        ready = sweep.show_plan_of(request, loaded, machine)
    else:
        ready = submit.resolve(request, loaded.specs[0], machine)
    plan, placement = ready.plan, ready.placement
    echo(f"run        {ready.run.run_id}  ({text.shown(ready.run.path)})")
    echo(f"backend    {plan.backend}" + (f"  (site: {text.shown(used)})" if used else ""))
    threads = ready.config.execution.threads_per_rank
    nodes = f"{placement.nodes} node(s) x " if placement.nodes > 1 else ""
    echo(
        f"ranks      {nodes}{placement.nproc_per_node} on {placement.device}, {threads} CPU"
        " thread(s) each"
    )
    micro, world = ready.config.micro_batch_size(), placement.world_size
    batch = ready.spec.train.global_batch_size
    echo(
        f"batch      {batch} = {world} rank(s) x at most {micro}, {-(-batch // (micro * world))}"
        " round(s) a step"
    )
    if ready.spec.after:
        echo(
            f"after      {ready.spec.after}, which is submitted along; while that is in the queue,"
            " this job waits behind it"
        )
    for note in plan.notes:
        echo(f"note       {note}")
    echo("\n# the job, resolved")
    echo(
        yaml.safe_dump(
            ready.spec.model_dump(mode="json", exclude_unset=True), sort_keys=False
        ).rstrip()
    )
    if plan.backend == "slurm":
        from launch.backends import slurm

        echo("\n# the batch script")
        try:
            echo(slurm.script(ready.run, plan))
        except SlurmError as error:  # it is asked where the job waits for another one's
            echo(f"# not known before Slurm answers: {error}")
        echo("# on each node launch.node then starts")
    else:
        echo("\n# the command")
    echo(
        " \\\n  ".join(
            [*(f"{k}={shlex.quote(v)}" for k, v in plan.env.items()), *map(shlex.quote, plan.argv)]
        )
    )


@click.command("check")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting, as in train.epochs=3.",
)
@click.option(
    "--deep",
    is_flag=True,
    help="The model with a batch's shapes, and the data, too. Trains nothing, needs no weights.",
)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), help="With --deep: where the raw data sets lie."
)
@click.option(
    "--site", "site_file", type=click.Path(path_type=Path), help="With --deep: the site file."
)
@click.argument("jobs", nargs=-1)
def check_(
    *,
    jobs: tuple[str, ...],
    settings: tuple[str, ...],
    deep: bool,
    data_dir: Path | None,
    site_file: Path | None,
) -> None:
    """Find every mistake in the job files JOBS (all of the project's where none is named).

    Exit codes: 0 right, 2 mistakes; with --deep 1 where only data are not there, neither the job's
    nor its fallback's stand-in.
    """
    project = environment.project()
    problems: list[Problem] = []
    names = jobs or tuple(job.name for job in load.find_all(project))
    right = []
    for name in names:
        try:
            job = load.find(name, project)
            loaded = load.load_points(job, settings, without_gpu=False)
            points = f", {len(loaded.points)} points" if loaded.is_sweep else ""
            echo(
                f"{name}: right" + (f", {loaded.search.trials} trials" if loaded.search else points)
            )
            right.append(name)
        except SpecError as error:
            problems += error.problems
    code = _deep(right, settings, data_dir, site_file) if deep else EXIT_DONE
    if problems:
        raise SpecError(problems)
    sys.exit(code)


def _deep(
    names: list[str], settings: tuple[str, ...], data_dir: Path | None, site_file: Path | None
) -> int:
    """Looks at the models and the data of jobs that are right as written; returns the exit code."""
    from launch import errors
    from launch.submit import inspection

    machine, codes = environment.machine(), [EXIT_DONE]
    for name in names:
        request, _ = options.request(
            JobOptions(name, site_file, settings=settings, data_dir=data_dir)
        )
        try:
            lines, there = inspection.deep(request, machine)
        except errors.SubmitError as error:
            echo(f"{name}: {error}", err=True)
            codes.append(EXIT_WRONG)
            continue
        for line in lines:
            echo(f"{name}: {line}")
        codes.append(EXIT_DONE if there else EXIT_FAILED)
    return max(codes)
