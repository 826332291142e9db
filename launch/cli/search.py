"""What a person sees of a search: trials one after the other, each chosen by the results of those before; the table at the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import yaml

from launch import local, search, site, snapshot, sweepdir
from launch import status as run_status
from launch import submit as submitting
from launch.cli import sweep as sweeps
from launch.report import words
from launch.search import Record, Searched
from launch.site import Machine
from launch.spec import Loaded
from launch.submit import Ready, Request, SubmitError
from launch.sweepdir import Submit


def submit_all(request: Request, loaded: Loaded, machine: Machine) -> int:
    """Goes on with the trials that have no result, then begins those that are missing. Returns the exit code.

    Raises SubmitError.
    """
    _refuse(request)
    of = search.searched(sweeps.sweep_of(request), loaded)
    to_continue = _to_continue(of)
    _show(of, to_continue)
    code = sweepdir.keep_code(of.sweep, snapshot.look(request.project))
    of.sweep.job.write_text(yaml.safe_dump({k: v for k, v in loaded.written.items() if k != "after"}, sort_keys=False))
    submit = sweepdir.begin(of.sweep, request.job.name, request.backend, request.settings, list(of.trials().values()))
    trials = _trials(of, request, machine, submit, to_continue)
    stopped = sweeps.run_all(of.sweep, submit, trials, len(to_continue) + of.missing(), code)
    of.open_trials()
    return sweeps.conclude(of.sweep, submit, request.job.name, stopped)


def _refuse(request: Request) -> None:
    """Raises SubmitError where a search cannot be run: the trainer of a trial asks the study, too."""
    python = site.python(request.site)
    if not local.python_has(python, "optuna"):
        raise SubmitError(f"{python} has no optuna, which a search takes: install the extra 'search' there")
    if request.backend == "docker":
        raise SubmitError("a search runs locally or on Slurm: a container sees its own run alone, not the study beside it")


def _to_continue(of: Searched) -> dict[int, Record]:
    """The trials that have no result, and that nobody works on."""
    open_trials = of.open_trials()
    standings = run_status.standings([of.sweep.run(trial["run_id"]) for trial in open_trials.values()])
    return {number: t for number, t in open_trials.items() if standings[t["run_id"]].state not in ("running", "queued")}


def _trials(
    of: Searched, request: Request, machine: Machine, submit: Submit, to_continue: dict[int, Record]
) -> Iterator[tuple[dict[str, Any], Ready]]:
    """Each trial's values and its run, when it is its turn."""
    for number, trial in to_continue.items():
        yield trial["axes"], search.resolve(of, request, machine, number, trial["axes"], trial["run_id"])
    of.open_trials()  # the study learns of each before the next one is asked for
    while begun := search.begin(of, request, machine):
        trial, ready = begun
        submit["points"].append(trial)
        if ready:
            yield trial["axes"], ready
        else:
            click.echo(f"batchyard: trial {trial['trial']}: {trial['error']}", err=True)
        of.open_trials()


def _show(of: Searched, to_continue: dict[int, Record]) -> None:
    """How many trials there are of each kind, and those by name that a person should know of."""
    done = len(of.trials()) - len(of.open_trials())
    kinds = {"done": done, "to go on with": len(to_continue), "running": len(of.trials()) - done - len(to_continue),
             "to begin": of.missing()}  # fmt: skip
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    click.echo(f"{of.sweep.sweep_id}: {words.plural(of.search.trials, 'trial')}: {told}")
    for number, trial in to_continue.items():
        click.echo(f"  continued    trial {number}  {trial['run_id']}")


def show_plan_of(request: Request, loaded: Loaded, machine: Machine) -> Ready:
    """`batchyard show` of a search: how far it is, and a run with the first value of every axis, of which the rest is shown."""
    _refuse(request)
    of = search.searched(sweeps.sweep_of(request), loaded)
    told = f"{words.plural(of.search.trials, 'trial')}, {of.missing()} to begin"
    click.echo(f"{of.sweep.sweep_id}: {told}; each is chosen when it begins, by the results of those before")
    click.echo(f"\na run as a trial may be, {loaded.points[0]}:")
    return submitting.resolve(request, loaded.specs[0], machine)
