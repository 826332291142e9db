"""The options that several verbs share, and the request that they make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from launch import environment, slurm_commands
from launch.runs import array_listing, records, sweep_records
from launch.runs import find as rundir
from launch.runs.find import NoSuchRun
from launch.spec import folders
from trainer.config.files.layout import RunDir, SweepDir

if TYPE_CHECKING:
    from rich.console import Console

    from launch.environment import BackendName
    from launch.spec.job import Job
    from launch.spec.site import Site
    from launch.submit.request import Request

F = TypeVar("F", bound=Callable[..., Any])

_PATH = click.Path(path_type=Path)
_SITE = click.option(
    "--site", "site_file", type=_PATH, help="The site file; else the XDG one, else ./site.yaml."
)


def for_runs(function: F) -> F:
    """--site, --runs-dir: where the run directories are."""
    runs = click.option(
        "--runs-dir", type=click.Path(path_type=Path), help="Where the run directories lie."
    )
    return _SITE(runs(function))


def for_jobs(function: F) -> F:
    """What names a job and the place to run it."""
    for option in (
        click.option(
            "--strict-resources", is_flag=True, help="Refuse to run on less than the job asks for."
        ),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="Where the raw data sets lie."
        ),
        click.option("--new", is_flag=True, help="Start another run of the same configuration."),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Override a setting, as in train.epochs=3.",
        ),
        click.option(
            "--backend",
            type=click.Choice(environment.BACKENDS),
            help="Where to run; else the site's, else local.",
        ),
        for_runs,
        click.argument("job"),
    ):
        function = option(function)
    return function


def trust(function: F) -> F:
    """--trust: of verbs that run a run's code."""
    return click.option(
        "--trust",
        is_flag=True,
        help="Run RUN's code although it is another's, or others can write it.",
    )(function)


def runs_folder(site_file: Path | None, runs_dir: Path | None) -> Path:
    """The folder of the run directories. Raises SpecError, and NoSiteFile."""
    if runs_dir and site_file is None:
        return environment.printable(runs_dir.absolute(), "--runs-dir")
    if environment.find(site_file, environment.project()) is None:
        return environment.printable(Path(environment.RUNS).absolute(), "the working folder")
    used = site_of(site_file)
    return (
        environment.printable(runs_dir.absolute(), "--runs-dir")
        if runs_dir
        else folders.folders(used).runs
    )


def site_of(site_file: Path | None) -> Site:
    """The site. Raises SpecError, and NoSiteFile."""
    # and with it pydantic, which takes longer than the table of a thousand runs
    from launch.spec.site import load

    return load(site_file, environment.project())[0]


@dataclass(frozen=True)
class RunOptions:
    """What `for_runs` and `trust` read from the command line, and the name of a run."""

    run: str
    site_file: Path | None
    runs_dir: Path | None
    trust: bool

    def find(self) -> tuple[RunDir, Site]:
        """The run, whose code may be run, and the site.

        Raises SpecError, NoSiteFile, NoSuchRun and DistrustError.
        """
        from launch.submit import trust as trusting

        runs = runs_folder(self.site_file, self.runs_dir)
        used = site_of(self.site_file)
        run = rundir.find(self.run, runs)
        trusting.check(run, used.trusted, once=self.trust)
        return run, used


def console() -> Console:
    """For tables; a pipe has no width to fold to."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)


@dataclass(frozen=True)
class JobOptions:
    """What `for_jobs` reads from the command line."""

    job: str
    site_file: Path | None = None
    runs_dir: Path | None = None
    backend: BackendName | None = None
    settings: tuple[str, ...] = ()
    new: bool = False
    data_dir: Path | None = None
    strict_resources: bool = False


def request(given: JobOptions) -> tuple[Request, Path | None]:
    """What the options ask for, and the site file that was used. Raises SpecError."""
    from launch.spec import load as spec
    from launch.spec import site as site_files  # here, for the verbs about runs need no job
    from launch.submit.request import Request

    project = environment.project()
    found, used = site_files.load(given.site_file, project)
    backend = given.backend or found.backend
    notes: tuple[str, ...] = ()
    if backend == "slurm":
        slurm_commands.refuse_other_cluster(submitting=True)
        found, notes = site_files.with_variables(found)

    where = folders.folders(found, given.data_dir)
    if given.runs_dir:
        runs = environment.printable(given.runs_dir.absolute(), "--runs-dir")
        where = folders.Folders(where.data, where.cache, runs)

    run = RunDir(where.runs / given.job)
    sweep = SweepDir(where.runs / given.job)
    is_id = "/" not in given.job and not given.new
    of_run = is_id and run.config.exists()
    of_sweep = is_id and not of_run and sweep.record.exists()
    after = None
    # the id of a run or of a sweep: it continues by its own resolved job
    if of_run:
        job = _job_of_run(run)
        after = _before([run])
    elif of_sweep:
        job = _job_of_sweep(sweep)
        after = _before(sweep_records.runs(sweep))
    else:
        job = spec.find(given.job, project)

    asked = Request(
        job,
        project,
        found,
        where,
        backend,
        given.settings,
        new=given.new,
        strict=given.strict_resources,
        run_id=run.run_id if of_run else None,
        after=after,
        sweep=sweep.sweep_id if of_sweep else None,
        notes=notes,
    )
    return asked, used


def _job_of_run(run: RunDir) -> Job:
    """The resolved job of an existing run. Raises NoSuchRun where it has none."""
    from launch.spec.job import Job

    config = records.read(run.config, {**records.CONFIG, "job*": records.TEXT}) or {}
    text = array_listing.job_text(run)
    if text is None and not run.job.exists():
        raise NoSuchRun(
            f"{run.run_id} was never queued: `batchyard submit"
            f" {config.get('sweep') or config['job']}` goes on"
        )
    return Job(config["job"], run.job, text)


def _job_of_sweep(sweep: SweepDir) -> Job:
    from launch.spec.job import Job

    record = records.read(sweep.record, {**records.SWEEP, "job*": records.TEXT}) or {}
    return Job(str(record.get("job")), sweep.job)


def _before(runs: list[RunDir]) -> RunDir | None:
    """The run that an earlier submit found must be completed before these."""
    return next((RunDir(Path(before)) for run in runs if (before := _after(run))), None)


def _after(run: RunDir) -> str | None:
    return (records.read(run.plan, records.PLAN) or {}).get("after")
