"""What a person sees of a search: trials one after the other, each chosen by the results of those
before; the table at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from launch import words
from launch.backends import standings as backends_standings
from launch.backends.arrays import adopt_sweep, submit_trials, waiting_trials
from launch.console import sweep as sweeps
from launch.environment import Machine
from launch.errors import SubmitError
from launch.runs import locks, state, sweep_records
from launch.runs.state import Standing
from launch.runs.sweep_records import Submit
from launch.spec import folders
from launch.spec.job import Loaded
from launch.spec.sweep import Sweep
from launch.submit import data, run_code, snapshot, tools, write
from launch.submit import request as submitting
from launch.submit.request import Ready, Request
from launch.submit.snapshot import Code
from launch.sweeps import points, queue, search, study_restore, trial
from launch.sweeps.search import Record, Searched
from launch.text import echo
from trainer.config.files.lock import Lock


@dataclass(frozen=True)
class Session:
    """One submit of a search.

    submit: its record in sweep.json. to_continue: by number, the trials that have no result.
    """

    of: Searched
    request: Request
    loaded: Loaded
    machine: Machine
    submit: Submit
    to_continue: dict[int, Record]
    code: Code

    def resolve(self, number: int, trial_: Record) -> Ready:
        """A trial that is continued, ready to be submitted."""
        axes, run_id = trial_["axes"], trial_["run_id"]
        return search.resolve(self.of, self.request, self.machine, number, axes, run_id)


def submit_all(request: Request, loaded: Loaded, machine: Machine) -> int:
    """Goes on with the trials that have no result, then begins those that are missing.

    Returns the exit code.

    Raises SubmitError.
    """
    refuse(request)
    of = search.searched(points.sweep_of(request), loaded)
    if request.backend == "slurm":
        with _queueing(of):
            adopt_sweep(of.sweep)
    if mended := study_restore.mend(of):
        echo(mended)
    to_continue = _to_continue(of)
    _show(of, to_continue)
    for note in request.notes:
        queue.say(note)
    code = snapshot.look(request.project)
    for note in code.notes:
        queue.say(note)
    code = run_code.keep_code(of.sweep, code, request.site.trusted, trust=request.trust)
    sweep_records.write_job(of.sweep, loaded.written)
    submit = sweep_records.begin(
        of.sweep, request.job.name, request.backend, request.settings, list(of.trials().values())
    )
    session = Session(of, request, loaded, machine, submit, to_continue, code)
    if request.backend == "slurm":
        return _queue(session)
    trials = _trials(session)
    stopped = sweeps.run_all(of.sweep, submit, trials, len(to_continue) + of.missing(), code)
    final = {
        record["run_id"] for number, record in of.trials().items() if number not in of.open_trials()
    }
    return sweeps.conclude(of.sweep, submit, request.job.name, stopped=stopped, final=final)


def refuse(request: Request) -> None:
    """Raises SubmitError where a search cannot be run: the trainer of a trial asks the
    study, too.
    """
    python = folders.python(request.site)
    if not tools.python_has(python, "optuna"):
        raise SubmitError(
            f"{python} has no optuna, which a search takes: install the extra 'search' there"
        )
    if request.backend == "docker":
        raise SubmitError(
            "a search runs locally or on Slurm: a container sees its own run alone, not the study"
            " beside it"
        )


def _to_continue(of: Searched) -> dict[int, Record]:
    """The trials that have no result, and that nobody works on; of those that drew the same, the
    first.
    """
    of_runs: dict[str, tuple[int, Record]] = {}
    for number, record in of.open_trials().items():
        of_runs.setdefault(record["run_id"], (number, record))
    standings = backends_standings.standings([of.sweep.run(run_id) for run_id in of_runs])
    return {n: record for run_id, (n, record) in of_runs.items() if not standings[run_id].is_active}


@contextmanager
def _queueing(of: Searched) -> Iterator[Lock]:
    """One submit at a time queues job arrays of a sweep. Raises SubmitError."""
    lock = locks.take(of.sweep.queue_lock, of.sweep.sweep_id)
    try:
        yield lock
    finally:
        lock.release()


def _queue(session: Session) -> int:
    """Queues the trials to continue, and behind them as many tasks as trials are missing, each of
    which chooses its own.
    """
    of, request, code = session.of, session.request, session.code
    at_once = Sweep.model_validate(session.loaded.written["sweep"]).array_parallelism
    ready = [session.resolve(number, record) for number, record in session.to_continue.items()]
    exit_code = queue.queue_all(of.sweep, session.submit, request.job.name, ready, code, at_once)
    with _queueing(of) as lock:
        tasks = of.missing() - len(waiting_trials(of.sweep))
        if tasks <= 0:
            return exit_code
        shutil.rmtree(of.sweep.template.path, ignore_errors=True)
        of.sweep.template.path.mkdir()
        of_sweep = replace(request.folders, runs=of.sweep.path)
        asked = replace(
            request,
            run_id=of.sweep.template.run_id,
            folders=of_sweep,
            new=False,
            sweep=of.sweep.sweep_id,
        )
        template = submitting.resolve(asked, session.loaded.specs[0], session.machine)
        write.write_run(template, Standing("new"), code, None, queue.say, shared=True)
        data.prepare_data(template, queue.say, lock=lock)
        trial.leave_request(of.sweep, replace(template, request=request), code)
        behind = {job.split("_")[0] for job in state.slurm_jobs([r.run for r in ready])[0].values()}
        arrays = submit_trials(of.sweep, template.plan, code.root, tasks, at_once, sorted(behind))
    echo(
        f"queued {words.plural(tasks, 'trial')} as Slurm job array {', '.join(arrays)}, at most"
        f" {at_once} at once; each is chosen when it begins"
    )
    echo(
        f"batchyard status {of.sweep.sweep_id} shows what has begun; batchyard cancel"
        f" {of.sweep.sweep_id} stops it"
    )
    return exit_code


def _trials(session: Session) -> Iterator[tuple[dict[str, Any], Ready]]:
    """Each trial's values and its run, when it is its turn."""
    of = session.of
    for number, record in session.to_continue.items():
        yield record["axes"], session.resolve(number, record)
    of.open_trials()  # the study learns of each before the next one is asked for
    while begun := search.begin(of, session.request, session.machine):
        record, ready = begun
        session.submit["points"].append(record)
        if ready:
            yield record["axes"], ready
        else:
            echo(f"batchyard: {search.told(record)}", err=True)
        of.open_trials()


def _show(of: Searched, to_continue: dict[int, Record]) -> None:
    """How many trials there are of each kind, and those by name that a person should know of."""
    begun, open_trials = len(of.trials()), len(of.open_trials())
    kinds = {
        "done": begun - open_trials,
        "to go on with": len(to_continue),
        "running": open_trials - len(to_continue),
        "to begin": of.missing(),
    }
    told = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    echo(f"{of.sweep.sweep_id}: {words.plural(of.search.trials, 'trial')}: {told}")
    for number, record in to_continue.items():
        echo(f"  continued    trial {number}  {record['run_id']}")


def show_plan_of(request: Request, loaded: Loaded, machine: Machine) -> Ready:
    """`batchyard show` of a search: how far it is, and a run with the first value of every axis, of
    which the rest is shown.
    """
    refuse(request)
    of = search.searched(points.sweep_of(request), loaded)
    told = f"{words.plural(of.search.trials, 'trial')}, {of.missing()} to begin"
    echo(
        f"{of.sweep.sweep_id}: {told}; each is chosen when it begins, by the results of those"
        " before"
    )
    echo(f"\na run as a trial may be, {loaded.points[0]}:")
    return submitting.resolve(request, loaded.specs[0], machine)
