"""submit: run a job or continue it, and stay in front of it on this machine.

A sweep's points go the same way (cli/sweep.py).
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from typing import Any

import click

from launch import environment, report
from launch.backends import local
from launch.cli import options
from launch.cli.options import JobOptions
from launch.console import status
from launch.environment import BackendName, Machine
from launch.runs.find import Standing
from launch.spec.load import JobSpec, Loaded
from launch.submit import parents, refused, run_code, snapshot
from launch.submit import request as submit
from launch.submit.request import Ready, Request
from launch.submit.snapshot import Code
from launch.text import echo, plain
from trainer.config.files.layout import SweepDir
from trainer.config.files.outcome import EXIT_DONE, Outcome


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
    if submit.slurm_is_here_unasked(request, site_file, backend):
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
    sys.exit(run(ready, snapshot.look(request.project), local.Foreground()))


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
        from launch.console import sweep

        all_ready = [
            ready for _, ready in sweep.resolve(request, loaded, machine, sweep.sweep_of(request))
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
    if (code := run(ready, snapshot.look(request.project), local.Foreground())) != EXIT_DONE:
        echo(
            f"{request.job.name} was not started: {ready.run.run_id} is not completed; submitting"
            " again goes on with both"
        )
        sys.exit(code)
    echo()
    return replace(request, after=ready.run)


def run(ready: Ready, code: Code, front: local.Foreground) -> int:
    """A run or a point of a sweep: here to its end, on Slurm into the queue; one that is done or
    runs already is only told.

    Returns the exit code. Raises SubmitError, StartError and SlurmError.
    """
    if ready.plan.backend == "slurm" and ready.config.sweep:
        _adopt_sweep(SweepDir(ready.request.folders.runs / ready.config.sweep))
    lock = submit.take(ready.run.submit_lock, ready.run.run_id)
    is_first = not ready.run.config.exists()
    try:
        if ready.plan.backend == "slurm":
            from launch.backends import slurm

            slurm.adopt(ready.run)
        before = status.standings([ready.run])[ready.run.run_id]
        if bad_file := ready.unreadable or (before.where if before.state == "unreadable" else None):
            to_try = (
                "put that file back from a copy, or remove it where no process writes it; --new"
                " starts another run"
            )
            raise submit.SubmitError(f"{ready.run.run_id} is unreadable: {bad_file}\n{to_try}")
        if before.state == "completed":
            return _done(ready, before, code)
        if before.is_active:
            echo(
                f"{ready.run.run_id} is {before.state}: {before.where}; batchyard logs"
                f" {ready.run.run_id} -f"
            )
            return EXIT_DONE
        _announce(ready, before)
        image = image_of(ready) if ready.plan.backend == "docker" else None
        ready = submit.prepare_run(ready, before, code, image, lambda line: echo(f"  {line}"), lock)
        if ready.plan.backend == "slurm":
            return _queue(ready)
        attempt, process = local.submit(ready.run, ready.plan)
    except BaseException:
        if is_first and ready.config.trial is None:  # the study knows a trial already
            refused.discard(ready.run)
        raise
    finally:
        lock.release()
        refused.remove_if_empty(ready.run)
    # and with it rich, for those alone who stay in front of a run
    from launch.console.follow import Follower

    return _ended(ready, front.wait(ready.run, attempt, process, Follower(attempt)))


def _adopt_sweep(sweep: SweepDir) -> None:
    """Finds what a killed submit of its sweep had queued: the run may be among it.

    Raises SubmitError and SlurmError.
    """
    from launch.backends import slurm

    if sweep.slurm.exists():
        lock = submit.take(sweep.queue_lock, sweep.sweep_id)
        try:
            slurm.adopt_sweep(sweep)
        finally:
            lock.release()


def _announce(ready: Ready, before: Standing) -> None:
    placement, threads = ready.placement, ready.config.execution.threads_per_rank
    nodes = f"{placement.nodes} nodes x " if placement.nodes > 1 else ""
    echo(
        f"{ready.run.run_id} on {ready.plan.backend}: {nodes}{placement.nproc_per_node} rank(s) on"
        f" {placement.device}, {threads} CPU thread(s) each"
    )
    echo(f"  {environment.shown(ready.run.path)}")
    for note in ready.plan.notes:
        echo(f"  {note}")
    if before.state != "new":
        echo(f"  continues; it was {before.state}" + (f" ({before.where})" if before.where else ""))


def image_of(ready: Ready) -> str:
    """The image's name and digest, for the record of the code.

    Raises StartError where there is none.
    """
    image = ready.plan.image or ""
    digest = local.image_id(ready.request.site.docker.client, image)
    if digest is None:
        make = "make image" + (" CPU=1" if ready.plan.device == "cpu" else "")
        raise local.StartError(
            f"the engine has no image '{image}': {make} builds it; container.image or the site"
            " names another"
        )
    return f"{image} {digest}"


def _queue(ready: Ready) -> int:
    from launch.backends import slurm

    attempt, job_id = slurm.submit(ready.run, ready.plan)
    echo(f"queued as Slurm job {job_id}; its script: {environment.shown(attempt.script)}")
    echo(
        f"batchyard logs {ready.run.run_id} -f follows it; batchyard cancel {ready.run.run_id}"
        " stops it after a checkpoint"
    )
    return EXIT_DONE


def _done(ready: Ready, before: Standing, code: Code) -> int:
    outcome = before.outcome
    assert outcome is not None
    echo(f"{ready.run.run_id} is done: {submit.result_line(outcome)} ({outcome.attempt})")
    if run_code.differs(ready.run, code):
        echo("finished with other code than yours: --new trains with yours")
    echo(f"report: {environment.shown(report.write(ready.run))}")
    return EXIT_DONE


def _ended(ready: Ready, outcome: Outcome) -> int:
    colour = {"completed": "green", "stopped": "yellow", "failed": "red"}[outcome.status]
    echo(ready.run.run_id, colour=colour, nl=False)
    echo(f" {submit.result_line(outcome)}")
    if outcome.hint:
        echo(f"to try: {plain(outcome.hint)}")
    if outcome.status == "stopped":
        echo(f"batchyard submit {ready.run.run_id} continues it")
    with contextlib.suppress(OSError):  # a disk that ended the run takes no report
        echo(f"report: {environment.shown(report.write(ready.run))}")
    return outcome.exit_code
