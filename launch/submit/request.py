"""From a job file to a running attempt, read from top to bottom: spec, placement, plan, run
directory, data, code, backend.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch import environment
from launch.environment import BackendName, Machine
from launch.errors import SubmitError
from launch.plan import build as planning
from launch.plan.build import Plan
from launch.plan.placement import (
    Destination,
    Placement,
    fit_precision,
    has_gpu,
    place,
    with_defaults,
)
from launch.runs import find
from launch.runs.records import Unreadable
from launch.spec import folders as spec_folders
from launch.spec import load as spec
from launch.spec.folders import Folders
from launch.spec.job import Job, JobSpec, Loaded
from launch.spec.site import Site
from launch.submit import parents, snapshot, trust
from launch.submit.snapshot import Code
from trainer.config import wandb_mode
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig, canonical


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    job: Job
    project: Path
    site: Site
    folders: Folders
    backend: BackendName
    settings: tuple[str, ...] = ()
    new: bool = False
    strict: bool = False
    # the run's id where it is known: an existing run to go on with, a point of a sweep
    run_id: str | None = None
    after: RunDir | None = None  # the run that must be completed first
    # the id of an existing sweep to go on with, or of the one that the run is a point of
    sweep: str | None = None
    notes: tuple[str, ...] = ()  # what decides beside the job and the site file
    # the user vouches for the code that the run is frozen with, whoever owns it
    trust: bool = False


@dataclass(frozen=True)
class Ready:
    """Everything decided before anything is written. unreadable: what is wrong with the config.json
    that a point's run has.
    """

    request: Request
    spec: JobSpec
    placement: Placement
    run: RunDir
    config: RunConfig
    plan: Plan
    unreadable: str | None = None


def load(request: Request) -> tuple[Loaded, Machine]:
    """The job as it is on the chosen place, and this machine. Raises SpecError."""
    machine = environment.machine()
    without_gpu = not has_gpu(request.backend, request.site, machine)
    return spec.load_points(request.job, request.settings, without_gpu=without_gpu), machine


def resolve(request: Request, job: JobSpec, machine: Machine) -> Ready:
    """Placement, configuration and plan of one run.

    Writes nothing. Raises SpecError and SubmitError.
    """
    job = with_defaults(job, request.site, request.backend)
    placement = place(job, request.site, machine, request.backend, strict=request.strict)
    job, placement = fit_precision(job, placement, machine, request.backend)
    after = request.after or _before(request, job)
    job = parents.with_run_id(request.job, job, after)
    run_id = request.run_id or f"{request.job.name}-{job.train.digest()[:8]}"
    run = find.run_for(run_id, request.folders.runs, new=request.new)
    before, unreadable = None, None
    try:
        before = find.read_config(run) if run.path.exists() else None
    except Unreadable as error:
        if request.sweep is None:
            raise
        unreadable = error.within(run.path)  # the other points are not kept from theirs
    if before and canonical(before.train) != canonical(job.train):
        raise SubmitError(
            f"{run.path} holds a run of another configuration:\n{_difference(before, job)}\n--new"
            " starts another run"
        )
    fixed, sweep = (
        (before.execution, request.sweep or before.sweep) if before else (None, request.sweep)
    )
    config = planning.run_config(request.job.name, run.run_id, job, placement, fixed, sweep)
    destination = Destination(
        request.backend,
        request.site,
        request.folders,
        python=spec_folders.python(request.site),
        user=(os.getuid(), os.getgid()),
    )
    plan = planning.build(job, config, placement, run, destination)
    if after:
        plan = dataclasses.replace(plan, after=str(after.path))
    plan = dataclasses.replace(plan, notes=[*request.notes, *plan.notes])
    if config.execution.tracking.mode != "disabled":
        _check_wandb(plan)
    return Ready(request, job, placement, run, config, plan, unreadable)


def _check_wandb(plan: Plan) -> None:
    """Raises SubmitError where the environment that a run gets asks of wandb what
    nobody can know.
    """
    try:
        wandb_mode.asked(environment.environment(**plan.env))
    except ValueError as error:
        raise SubmitError(f"wandb: {error}") from None


def _before(request: Request, job: JobSpec) -> RunDir | None:
    """The run that this one waits for, as it would be submitted."""
    before = parents.waits_for(request.job, job)
    if before is None:
        return parents.existing(request.job, job, request.folders.runs)
    own = dataclasses.replace(request, job=before, settings=(), new=False, run_id=None, sweep=None)
    loaded, machine = load(own)
    return resolve(own, loaded.specs[0], machine).run


def freeze(run: RunDir, code: Code, image: str | None, say: Callable[[str], None]) -> None:
    """Copies the code into the run's directory, and says what of it was left out."""
    snapshot.freeze(code, run, image)
    for note in code.notes:
        say(note)


def check_trust(ready: Ready) -> None:
    """Raises SubmitError where the run's frozen code may be somebody else's."""
    request = ready.request
    try:
        trust.check(ready.run, request.site.trusted, once=request.trust)
    except trust.DistrustError as error:
        raise SubmitError(str(error)) from None


def say_which_code(say: Callable[[str], None], outcome: Outcome | None, *, keep: bool) -> None:
    """Of a run that was frozen with other code than the user's. outcome: how it ended."""
    if keep:
        say(
            "continues with the code that it was submitted with; yours has changed since (--new"
            " trains with yours)"
        )
    elif outcome:
        say("takes the code as it is now, which has changed since the failed attempt")


def _difference(before: RunConfig, job: JobSpec) -> str:
    old, new = (
        json.dumps(canonical(t), indent=1, sort_keys=True).splitlines()
        for t in (before.train, job.train)
    )
    return "\n".join(
        line
        for line in difflib.unified_diff(old, new, "the run's", "yours", lineterm="", n=0)
        if line[:2] != "@@"
    )
