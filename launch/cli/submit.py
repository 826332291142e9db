"""submit: run a job or continue it, and stay in front of it on this machine.

A sweep's points go the same way (cli/sweep.py).
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from launch.cli import options
from launch.cli.options import JobOptions
from launch.console import foreground
from launch.console.run import image_of, run
from launch.environment import BackendName, Machine
from launch.spec.job import JobSpec, Loaded
from launch.submit import parents, snapshot
from launch.submit import request as submit
from launch.submit.request import Request
from launch.text import echo
from trainer.config.files.outcome import EXIT_DONE


@click.command("submit")
@click.option(
    "--prune",
    is_flag=True,
    help="Of a sweep: cancel what runs or waits of points that it no longer has.",
)
@options.trust
@options.for_jobs
def submit_(*, backend: BackendName | None, prune: bool, trust: bool, **given: Any) -> None:
    """Run JOB, or continue it where it was stopped; a finished run shows its result.

    A run_id as JOB continues that run.

    Of a job with a sweep: its points that are not done, one after the other; then their table. A
    sweep's id continues that one.

    Exit codes: 0 done (or queued), 1 failed, 2 the job or the call is wrong, 75 stopped after a
    checkpoint, to be continued.
    """
    request, site_file = options.request(JobOptions(backend=backend, **given))
    request = replace(request, trust=trust)
    if slurm_is_here_unasked(request, site_file, backend):
        echo(
            "sbatch is here, but no site file says slurm: running on this machine (--backend slurm"
            " runs it there)"
        )
    loaded, machine = submit.load(request)
    if prune:
        _refuse_prune(request, loaded)
    if parents.waits_for(request.job, loaded.specs[0]):
        _refuse_before_its_parents(request, loaded, machine)
    request = _after_its_parents(request, loaded.specs[0])
    if loaded.search:
        from launch.console import search

        sys.exit(search.submit_all(request, loaded, machine))
    if loaded.is_sweep:
        from launch.console import sweep

        sys.exit(sweep.submit_all(request, loaded, machine, prune=prune))
    ready = submit.resolve(request, loaded.specs[0], machine)
    sys.exit(run(ready, snapshot.look(request.project), foreground.Foreground()))


def _refuse_prune(request: Request, loaded: Loaded) -> None:
    """Raises UsageError where there are no points to cancel."""
    if loaded.search:
        raise click.UsageError(
            "--prune is for a sweep whose points stand in the job; a search chooses its own"
        )
    if not loaded.is_sweep:
        raise click.UsageError(f"--prune is for a job with a sweep; {request.job.name} has none")


def _refuse_before_its_parents(request: Request, loaded: Loaded, machine: Machine) -> None:
    """What this machine refuses of a job is refused before the jobs that it comes after have
    trained for it.

    Writes nothing. Raises SpecError, SubmitError, StartError.
    """
    if loaded.search:
        from launch.console import search

        search.refuse(request)
    if loaded.is_sweep and not loaded.search:
        from launch.sweeps import points

        all_ready = [
            ready for _, ready in points.resolve(request, loaded, machine, points.sweep_of(request))
        ]
    else:
        all_ready = [submit.resolve(request, job, machine) for job in loaded.specs]
    if all_ready[0].plan.backend == "docker":
        image_of(all_ready[0])


def _after_its_parents(request: Request, job: JobSpec) -> Request:
    """Submits the jobs that `job` comes after, the first one first: to their ends here, into the
    queue on Slurm.

    Their runs are those of their own files; `--set` and `--new` are for the job that was named.
    Returns the request, which knows the run before it. Exits where a job before it did not
    complete.
    """
    before = parents.waits_for(request.job, job)
    if before is None:
        return request
    own = replace(request, job=before, settings=(), new=False, run_id=None, sweep=None)
    loaded, machine = submit.load(own)
    ready = submit.resolve(_after_its_parents(own, loaded.specs[0]), loaded.specs[0], machine)
    echo(f"{request.job.name} comes after {before.name}:")
    if (code := run(ready, snapshot.look(request.project), foreground.Foreground())) != EXIT_DONE:
        echo(
            f"{request.job.name} was not started: {ready.run.run_id} is not completed; submitting"
            " again goes on with both"
        )
        sys.exit(code)
    echo()
    return replace(request, after=ready.run)


def slurm_is_here_unasked(request: Request, site_file: Path | None, asked: str | None) -> bool:
    """Whether sbatch is on PATH although nobody chose a backend: PATH is never a reason, and that
    is said.
    """
    return (
        asked is None
        and site_file is None
        and request.backend == "local"
        and shutil.which("sbatch") is not None
    )
