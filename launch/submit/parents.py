"""The run that another one waits for: named by `after`, or by `train.weights.run`, whose weights it
begins with.
"""

from __future__ import annotations

from pathlib import Path

from launch.runs.find import job_of
from launch.spec import bases
from launch.spec.job import Job, JobSpec
from launch.spec.yaml_tree import Place, Problem, SpecError
from trainer.config.files.layout import RunDir


def waits_for(job: Job, of: JobSpec) -> Job | None:
    """The job beside `job` that must be completed first, None where there is none, or where weights
    come from a run by its id.
    """
    name = of.after or (of.train.weights.run if of.train.weights else None)
    if name is None:
        return None
    path = bases.beside(job.path, name)
    return Job(Path(name).stem, path) if of.after or path.is_file() else None


def existing(job: Job, of: JobSpec, runs: Path) -> RunDir | None:
    """The run that `train.weights.run` names by its id. Raises SpecError where there is none."""
    name = of.train.weights.run if of.train.weights else None
    if name is None:
        return None
    run = RunDir(runs / name)
    if not run.config.exists():
        message = (
            f"there is no {bases.beside(job.path, name).name} beside this job, and no run '{name}'"
            f" in {runs}"
        )
        raise _wrong(job, message)
    return run


def with_run_id(job: Job, of: JobSpec, before: RunDir | None) -> JobSpec:
    """The spec with the run_id of the run whose weights it begins with, so that its own digest
    tells them.

    Raises SpecError where a sweep's points wait for more than one run.
    """
    weights = of.train.weights
    if weights is None or weights.run is None or before is None:
        return of
    if weights.run not in (before.run_id, job_of(before.run_id)):
        raise _wrong(
            job,
            f"is '{weights.run}', and the job waits for {before.run_id}: all points of a sweep wait"
            " for one run",
        )
    train = of.train.model_copy(
        update={"weights": weights.model_copy(update={"run": before.run_id})}
    )
    return of.model_copy(update={"train": train})


def _wrong(job: Job, message: str) -> SpecError:
    return SpecError([Problem(Place(str(job.path)), ("train", "weights", "run"), message)])
