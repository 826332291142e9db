"""What a person sees of a sweep: its plan, one point after the other, the table at the end.

What it means is in launch/spec/sweep.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

from launch import environment, report, words
from launch.backends import local, slurm
from launch.backends.local import StartError
from launch.cli import submit as cli
from launch.console import status as run_status
from launch.console import table
from launch.environment import Machine
from launch.plan.build import Plan
from launch.report import sweep_data
from launch.runs import find, sweep_records
from launch.runs.array_listing import Task
from launch.runs.find import NoSuchRun, Standing
from launch.runs.restarts import FIRST_GENERATION
from launch.runs.sweep_records import Submit
from launch.slurm_commands import SlurmError
from launch.spec import sweep as sweeping
from launch.spec.load import Loaded
from launch.spec.sweep import Point, Reconciled, Sweep
from launch.submit import refused, run_code, snapshot
from launch.submit import request as submitting
from launch.submit.request import Made, Ready, Request, SubmitError, Together
from launch.submit.snapshot import Code
from launch.text import echo, plain
from trainer.config.files.layout import RunDir, SweepDir, write_json
from trainer.config.files.lock import RENEW_S, Lock, LockLost
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED


def sweep_of(request: Request) -> SweepDir:
    """The sweep that the request begins or goes on with."""
    if request.sweep:
        return SweepDir(request.folders.runs / request.sweep)
    return sweep_records.sweep_for(request.job.name, request.folders.runs, new=request.new)


def resolve(
    request: Request, loaded: Loaded, machine: Machine, sweep: SweepDir
) -> list[tuple[Point, Ready]]:
    """Each point and its run, which is the one of the same configuration submitted by itself.

    In a sweep that --new began, runs of its own, which a later submit finds again by sweep.json.
    Raises SubmitError.
    """
    known = {sweeping.key(axes): run_id for axes, run_id in sweep_records.recorded(sweep)}
    alone = request.new or sweep.sweep_id != f"{request.job.name}.sweep"
    request = replace(request, new=False, sweep=sweep.sweep_id)
    found: dict[str, tuple[Point, Ready]] = {}
    for point, job in zip(loaded.points, loaded.specs, strict=True):
        ready = submitting.resolve(request, job, machine)
        recorded = known.get(point.key, "") if known else ""
        own = recorded.partition(".")[0] == ready.run.run_id
        if own and recorded != ready.run.run_id:
            ready = submitting.resolve(replace(request, run_id=recorded), job, machine)
        elif not own and alone:
            ready = submitting.resolve(replace(request, new=True), job, machine)
        other, _ = found.setdefault(ready.run.run_id, (point, ready))
        # what the spec tells apart this machine may not, as bf16 where the CPU has none
        if other is not point:
            raise SubmitError(
                f"the points {other} and {point} are one run here, {ready.run.run_id}:"
                f" {'; '.join(ready.plan.notes)}"
            )
    return list(found.values())


def submit_all(request: Request, loaded: Loaded, machine: Machine, *, prune: bool = False) -> int:
    """Runs what is missing of a sweep, one point after the other; on Slurm queues it.

    Returns the exit code.

    prune: cancels runs of points that are no longer wanted.
    """
    sweep = sweep_of(request)
    if request.backend == "slurm" and (lock := Lock(sweep.queue_lock)) and lock.acquire():
        slurm.adopt_sweep(sweep)
        lock.release()
    ready = resolve(request, loaded, machine, sweep)
    plan = reconcile(sweep, ready, run_status.standings([r.run for _, r in ready]))
    show_plan(sweep, plan)
    for note in request.notes:
        say(note)
    if prune:
        _prune(sweep, plan)
    to_run = [
        (wanted, r) for wanted, (_, r) in zip(plan.wanted, ready, strict=True) if wanted.to_run
    ]
    if to_run and ready[0][1].plan.backend == "docker":
        # without an image no point can start: said once, before the first
        cli.image_of(ready[0][1])
    code = snapshot.look(request.project)
    for note in code.notes:
        say(note)
    code = sweep_records.keep_code(sweep, code, request.site.trusted, trust=request.trust)
    sweep_records.write_job(sweep, loaded.written)
    record = [{"axes": point.axes, "run_id": r.run.run_id} for point, r in ready]
    submit = sweep_records.begin(sweep, request.job.name, request.backend, request.settings, record)
    done_by_others = [
        r for wanted, (_, r) in zip(plan.wanted, ready, strict=True) if wanted.progress == "done"
    ]
    if differ := sum(run_code.differs(r.run, code) for r in done_by_others):
        echo(
            f"{words.plural(differ, 'point')} finished with other code than yours: --new trains all"
            " with yours"
        )
    if request.backend == "slurm":
        at_once = Sweep.model_validate(loaded.written["sweep"]).array_parallelism
        return queue_all(sweep, submit, request.job.name, [r for _, r in to_run], code, at_once)
    in_order = ((wanted.point.axes, r) for wanted, r in to_run)
    stopped = run_all(sweep, submit, in_order, len(to_run), code)
    return conclude(sweep, submit, request.job.name, stopped=stopped)


def _prune(sweep: SweepDir, plan: Reconciled) -> None:
    """Cancels what runs or waits of the points that are no longer wanted; their
    directories stay.
    """
    from launch.cli import runs

    unwanted = [sweep.run(run_id) for _, run_id in plan.unwanted]
    try:
        runs.cancel_runs(unwanted, run_status.standings(unwanted))
    # of one on another machine: the others are submitted all the same
    except (NoSuchRun, SlurmError) as error:
        echo(error)


def say(line: str) -> None:
    echo(f"  {line}")


class Written(NamedTuple):
    """A point whose directory is written. waits: for its first start, until which its array has the
    rest.
    """

    ready: Ready
    made: Made
    waits: bool


def queue_all(
    sweep: SweepDir, submit: Submit, job: str, to_run: list[Ready], code: Code, at_once: int
) -> int:
    """Queues points as job arrays.

    One that cannot be prepared is recorded, and keeps no other from its place in the queue.
    """
    lock = submitting.take(sweep.queue_lock, sweep.sweep_id)
    first = [r.run for r in to_run if r.config.trial is None and not r.run.config.exists()]
    in_queue = set[RunDir]()
    try:  # held until all are queued: another submit finds them in the queue, or waits
        slurm.adopt_sweep(sweep)  # of one that died while we waited
        with submitting.Together() as together:
            queued, data = _tasks(submit, _write(sweep, submit, to_run, code, together, lock), lock)
        lock.verify()
        shared = {"root": str(code.root), "record": snapshot.record(code)}
        arrays = slurm.submit_sweep(queued, sweep, shared, data, at_once) if queued else []
        in_queue = {task.run for task, _ in queued}
    finally:
        unqueued = [run for run in first if run not in in_queue]
        _discard_refused(sweep, unqueued, lock)
        lock.release()
        for run in unqueued:
            refused.remove_if_empty(run)
    submit["ended"] = time.time()
    _record(sweep, submit, job)
    if arrays:
        echo(
            f"queued {words.plural(len(queued), 'point')} as Slurm job array {', '.join(arrays)},"
            f" at most {at_once} at once"
        )
        echo(
            f"batchyard status {sweep.sweep_id} shows them; batchyard cancel {sweep.sweep_id} stops"
            " them after a checkpoint"
        )
    return EXIT_FAILED if any("error" in p for p in submit["points"]) else EXIT_DONE


def _discard_refused(sweep: SweepDir, first: list[RunDir], lock: Lock) -> None:
    """Removes what was written of points that were refused at their first submit.

    Only of those whose lock this submit holds, and which are in no job array. Nothing is removed
    while it is not known whether Slurm took an array.
    """
    if slurm.has_intent(sweep):
        return
    held = {link.path for link in lock.links}
    mine = [run for run in first if run.submit_lock in held]
    try:
        lock.verify()
        jobs, unknown = find.slurm_jobs(mine)
    except (LockLost, OSError):
        return
    for run in mine:
        if run.run_id not in jobs and run.run_id not in unknown:
            refused.discard(run)


def _write(
    sweep: SweepDir, submit: Submit, to_run: list[Ready], code: Code, together: Together, lock: Lock
) -> list[Written]:
    """Locks the points and writes their directories; returns those that are to be queued, in their
    order.
    """
    written, known = dict[str, Written](), list[Ready]()

    def write(ready: Ready, before: Standing) -> None:
        try:
            if submitting.begins_in_array(ready):
                submitting.write_waiting(ready, before)
                written[ready.run.run_id] = Written(
                    ready, together.ask(ready, code.root), waits=True
                )
            else:
                ready = submitting.write_run(ready, before, code, None, say, shared=True)
                written[ready.run.run_id] = Written(
                    ready, together.ask(ready, ready.run.code.resolve()), waits=False
                )
        except (SubmitError, OSError) as error:
            _tell(sweep, submit, ready, error)

    for ready in to_run:
        submitting.take(ready.run.submit_lock, ready.run.run_id, lock)
        if ready.run.config.exists():
            slurm.adopt(ready.run)  # of a submit of this run alone
            known.append(ready)
        else:  # was never queued: its data can be made ready while we look at the others
            write(ready, Standing("new"))
        lock.renew()
    now = run_status.standings([ready.run for ready in known])
    for ready in known:
        before = now[ready.run.run_id]
        progress = "unreadable" if ready.unreadable else sweeping.PROGRESS[before.state]
        # by another submit, since the table
        if progress not in ("done", "running", "unreadable"):
            write(ready, before)
            lock.renew()
    return [written[ready.run.run_id] for ready in to_run if ready.run.run_id in written]


def _tasks(
    submit: Submit, written: list[Written], lock: Lock
) -> tuple[list[tuple[Task, Plan]], list[dict[str, Any]]]:
    """The points whose data is ready, as tasks of an array, and what was told of all data."""
    queued, data, told = list[tuple[Task, Plan]](), list[dict[str, Any]](), set[str]()
    texts = [submitting.job_text(point.ready.spec) if point.waits else None for point in written]
    for (ready, made, waits), text in zip(written, texts, strict=True):
        while not made.done():  # a download may outlast the lock's lease
            wait([made], timeout=RENEW_S)
            lock.renew()
        if waits and ready.run.plan.exists():  # a task of an array before has begun it
            continue
        try:
            queued.append((_task(ready, text, made.result(), data), ready.plan))
        except (SubmitError, OSError) as error:
            # one set of a thousand points has one thing to say
            _note(submit, ready, error, is_new=str(error) not in told)
            told.add(str(error))
        lock.renew()
    return queued, data


def _task(ready: Ready, text: str | None, made: dict[str, Any], data: list[dict[str, Any]]) -> Task:
    """A point as a task of an array. text: job.yaml of one that has never begun; made: the record
    of its data; data: those of all points. Raises SubmitError.
    """
    if text is None:
        submitting.prepare_data(ready, say, made)
        return Task(ready.run, None)
    submitting.check_micro_batches(ready, made)
    if made not in data:
        data.append(made)
        for note in made.get("notes", ()):
            say(note)
        if left_out := len(made.get("skipped", ())):
            say(
                f"{words.plural(left_out, 'picture')} cannot be used and are left out; the"
                " data.json of each point names them"
            )
    plan = submitting.plan_record(ready, FIRST_GENERATION)
    return Task(ready.run, {"job": text, "plan": plan, "data": data.index(made)})


def reconcile(
    sweep: SweepDir, ready: list[tuple[Point, Ready]], standings: dict[str, Standing]
) -> Reconciled:
    """The points as wanted against the runs that there are."""
    runs = [(point, r.run.run_id) for point, r in ready]
    states: dict[str, str] = {run_id: s.state for run_id, s in standings.items()}
    states |= {r.run.run_id: "unreadable" for _, r in ready if r.unreadable}
    return sweeping.reconcile(runs, states, sweep_records.recorded(sweep))


def show_plan(sweep: SweepDir, plan: Reconciled) -> None:
    """How many points there are of each kind, and those by name that a person should know of."""
    names = sweep_data.short_names(axis for w in plan.wanted[:1] for axis in w.point.axes)
    told = [f"{count} {progress}" for progress, count in plan.count().items() if count]
    echo(f"{sweep.sweep_id}: {words.plural(len(plan.wanted), 'point')}: {', '.join(told)}")
    for wanted in plan.wanted:
        name = _label(names, wanted.point.axes)
        if wanted.progress == "failed":
            echo(f"  tried again  {name}  {wanted.run_id} failed")
        elif wanted.progress == "stopped":
            echo(f"  continued    {name}  {wanted.run_id} was stopped")
        elif wanted.progress == "running":
            echo(f"  passed over  {name}  {wanted.run_id} runs already")
        elif wanted.progress == "unreadable":
            echo(
                f"  left alone   {name}  {wanted.run_id} is unreadable: batchyard status"
                f" {wanted.run_id} tells why"
            )
        if wanted.before:
            echo(f"  changed      {name}  {wanted.run_id}, was {wanted.before}")
    for axes, run_id in plan.unwanted:
        echo(f"  not wanted   {_label(names, axes)}  {run_id} is left as it is")


def _label(names: dict[str, str], axes: dict[str, Any]) -> str:
    return plain(
        " ".join(
            f"{names.get(axis, axis)}={sweep_data.axis_value(value)}"
            for axis, value in axes.items()
        )
    )


@contextmanager
def _all_signals_interrupt() -> Iterator[None]:
    """Between points TERM and HUP do what Ctrl-C does; in front of a point launch.local.Foreground
    takes all three.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def run_all(
    sweep: SweepDir,
    submit: Submit,
    to_run: Iterator[tuple[dict[str, Any], Ready]],
    count: int,
    code: Code,
) -> bool:
    """One point after the other, whatever becomes of each; returns whether a person stopped that.

    to_run: each point's axis values and its run; it is asked for the next one when that is to
    begin.
    """
    front = local.Foreground()
    begun = time.monotonic()
    try:
        with _all_signals_interrupt():
            for number in range(count):
                if front.asked_to_stop or sweep_records.cancelled(sweep, submit):
                    return True
                if (point := next(to_run, None)) is None:
                    break
                axes, ready = point
                each_s = (time.monotonic() - begun) / max(1, number)
                left = f", about {words.seconds(each_s * (count - number))} left" if number else ""
                echo(f"\n[{number + 1}/{count}{left}] {_label(sweep_data.short_names(axes), axes)}")
                _run_one(sweep, submit, ready, code, front)
                with suppress(OSError):  # a disk may be full for a while
                    # after each point: a morning's reader may come before the end
                    report.write_sweep(sweep)
            return front.asked_to_stop or sweep_records.cancelled(sweep, submit)
    except KeyboardInterrupt:
        echo("stopped between two points")
        return True


def _run_one(
    sweep: SweepDir, submit: Submit, ready: Ready, code: Code, front: local.Foreground
) -> None:
    """A point; one that cannot start is recorded and does not keep the others from theirs."""
    try:
        cli.run(ready, code, front)
    except (SubmitError, StartError, OSError) as error:
        _tell(sweep, submit, ready, error)


def _note(submit: Submit, ready: Ready, error: Exception, *, is_new: bool = True) -> None:
    if is_new:
        echo(f"batchyard: {ready.run.run_id}: {error}", err=True)
    next(p for p in submit["points"] if p["run_id"] == ready.run.run_id)["error"] = str(error)


def _tell(sweep: SweepDir, submit: Submit, ready: Ready, error: Exception) -> None:
    _note(submit, ready, error)
    _record(sweep, submit, ready.request.job.name)


def _record(sweep: SweepDir, submit: Submit, job: str) -> None:
    with suppress(OSError, SubmitError):  # what ran has its own record
        sweep_records.change(sweep, job, submit)


def conclude(
    sweep: SweepDir, submit: Submit, job: str, *, stopped: bool, final: Collection[str] = ()
) -> int:
    """The table, what failed and why, the best point, the page; the exit code. final: run_ids of a
    search's trials whose end, whatever it was, is their result.
    """
    submit["ended"] = time.time()
    _record(sweep, submit, job)
    echo()
    states = [state for run_id, state in show(sweep) if run_id not in final]
    try:
        echo(f"report: {environment.shown(report.write_sweep(sweep))}")
    except OSError as error:
        echo(f"the report could not be written: {error}", err=True)
    failed = any(s in ("failed", "dead", "unreadable") for s in states) or any(
        "error" in p and p["run_id"] not in final for p in submit["points"]
    )
    if stopped or any(s in ("stopped", "cancelled") for s in states):
        echo(
            f"batchyard submit {sweep.sweep_id} continues it"
            + (" and tries the failed points again" if failed else "")
        )
        return EXIT_STOPPED
    if failed:
        echo(f"batchyard submit {sweep.sweep_id} tries the failed points again")
        return EXIT_FAILED
    return EXIT_DONE


def status(sweep: SweepDir) -> None:
    """`batchyard status` of a sweep."""
    states = [state for _, state in show(sweep)]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    echo(
        f"{sweep.sweep_id}: {words.plural(len(states), 'point')}: {told}; batchyard report"
        f" {sweep.sweep_id} makes its page"
    )


def show(sweep: SweepDir) -> list[tuple[str, str]]:
    """Prints the table of the points, what failed and why, means over seeds, and the best point.

    Returns each point's run_id and state.
    """
    found = sweep_data.read(sweep)
    runs = [sweep.run(p.run.run_id) for p in found.points]
    standings, silence = run_status.look(runs)
    names, rows = found.names(), list[list[table.Cell]]()
    with_validation = any(p.best for p in found.points)
    for point, run in zip(found.points, runs, strict=True):
        row, where = run_status.row_of(run, standings[run.run_id])
        standings[run.run_id] = where
        validation = (
            [(sweep_data.validation(point) or "-").replace("%", " %")] if with_validation else []
        )
        lasted = words.seconds(point.lasted_s) if point.lasted_s is not None else "-"
        state = where.state, run_status.COLOURS.get(where.state)
        losses = [words.number(loss, 4) if loss is not None else "-" for loss in point.losses]
        figures = losses if found.of_numbers() else [row.accuracy]
        rows.append(
            [
                *(point.value(a) for a in names),
                state,
                row.step,
                *figures,
                *validation,
                lasted,
                run.run_id,
            ]
        )
    measured = ["train loss", "test loss"] if found.of_numbers() else ["test accuracy"]
    header = (
        *names.values(),
        "state",
        "step",
        *measured,
        *(["validation"] if with_validation else []),
        "time",
        "run",
    )
    table.show(header, rows, left=("state", "run"))
    run_status.tell(silence, standings.values())
    for run_id, where in standings.items():
        if where.state == "unreadable":
            echo(f"{run_id} is unreadable: {where.where}")
    for line in _told(found):
        echo(line)
    return [(run.run_id, standings[run.run_id].state) for run in runs]


def _told(found: sweep_data.Sweep) -> Iterator[str]:
    for why, whose in sweep_data.failures([p for p in found.points if not p.unreadable]).items():
        yield f"{words.plural(len(whose), 'point')} {why}"
        yield from (
            f"  {_label(found.names(), point.axes)} ({point.run.run_id})" for point in whose
        )
    for group in sweep_data.over_seeds(found.points):
        if group.test_accuracy and group.axes:
            mean = sweep_data.spread(group.test_accuracy)
            yield (
                f"{_label(found.names(), group.axes)}: test accuracy {mean} over"
                f" {words.plural(group.seeds, 'seed')}"
            )
    if best := sweep_data.best(found.points):
        yield (
            f"best: {_label(found.names(), best.point.axes)} ({best.point.run.run_id}), {best.told}"
        )


def cancel(sweep: SweepDir, *, now: bool = False) -> bool:
    """Stops the points that run after a checkpoint, and keeps every submit that works on the sweep
    from its next one; whether there was anything to stop. Raises as runs.cancel_runs.
    """
    from launch.cli import runs

    points_, waiting = sweep_records.runs(sweep), slurm.waiting_trials(sweep)
    standings = run_status.standings(points_)
    if (
        not waiting
        and not sweep_records.is_submitted(sweep)
        and not any(s.is_active for s in standings.values())
    ):
        return False
    write_json(sweep.cancel, {"time": time.time()})
    echo(f"{sweep.sweep_id}: no further point begins")
    for job in waiting:  # one that begins now finds the word above
        slurm.cancel(job, "PENDING")
    runs.cancel_runs(points_, standings, now=now)
    return True


def show_plan_of(request: Request, loaded: Loaded, machine: Machine) -> Ready:
    """`batchyard show` of a sweep: its points, and the run of the first, of which the rest is
    shown.
    """
    sweep = sweep_of(request)
    ready = resolve(request, loaded, machine, sweep)
    standings, silence = run_status.look([r.run for _, r in ready])
    plan = reconcile(sweep, ready, standings)
    show_plan(sweep, plan)
    run_status.tell(silence, standings.values())
    names = sweep_data.short_names(ready[0][0].axes)
    rows = [
        (*(sweep_data.axis_value(v) for v in w.point.axes.values()), w.progress, w.run_id)
        for w in plan.wanted
    ]
    table.show((*names.values(), "now", "run"), rows, left=("now", "run"))
    echo(f"\nthe first point, {ready[0][0]}:")
    return ready[0][1]
