"""What a person sees of a sweep: its plan, one point after the other, the table at the end.

What it means is in launch/spec/sweep.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from launch import report, words
from launch.backends import queue
from launch.backends import standings as backends_standings
from launch.backends.arrays import adopt_sweep, waiting_trials
from launch.console import foreground, table
from launch.console import run as console_run
from launch.console import status as run_status
from launch.environment import Machine
from launch.errors import StartError, SubmitError
from launch.report import sweep_data
from launch.runs import sweep_records
from launch.runs.find import NoSuchRun
from launch.runs.sweep_records import Submit
from launch.slurm_commands import SlurmError
from launch.spec.job import Loaded
from launch.spec.sweep import Sweep
from launch.submit import run_code, snapshot
from launch.submit.request import Ready, Request
from launch.submit.snapshot import Code
from launch.sweeps.points import reconcile, resolve, sweep_of
from launch.sweeps.queue import queue_all, record_submit, say, tell
from launch.sweeps.reconcile import Reconciled
from launch.text import echo, plain, shown
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import SweepDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED


def submit_all(request: Request, loaded: Loaded, machine: Machine, *, prune: bool = False) -> int:
    """Runs what is missing of a sweep, one point after the other; on Slurm queues it.

    Returns the exit code.

    prune: cancels runs of points that are no longer wanted.
    """
    sweep = sweep_of(request)
    if request.backend == "slurm" and (lock := Lock(sweep.queue_lock)) and lock.acquire():
        adopt_sweep(sweep)
        lock.release()
    ready = resolve(request, loaded, machine, sweep)
    plan = reconcile(sweep, ready, backends_standings.standings([r.run for _, r in ready]))
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
        console_run.image_of(ready[0][1])
    code = snapshot.look(request.project)
    for note in code.notes:
        say(note)
    code = run_code.keep_code(sweep, code, request.site.trusted, trust=request.trust)
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
    from launch.console.cancel import cancel_runs

    unwanted = [sweep.run(run_id) for _, run_id in plan.unwanted]
    try:
        cancel_runs(unwanted, backends_standings.standings(unwanted))
    # of one on another machine: the others are submitted all the same
    except (NoSuchRun, SlurmError) as error:
        echo(error)


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
    front = foreground.Foreground()
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
    sweep: SweepDir, submit: Submit, ready: Ready, code: Code, front: foreground.Foreground
) -> None:
    """A point; one that cannot start is recorded and does not keep the others from theirs."""
    try:
        console_run.run(ready, code, front)
    except (SubmitError, StartError, OSError) as error:
        tell(sweep, submit, ready, error)


def conclude(
    sweep: SweepDir, submit: Submit, job: str, *, stopped: bool, final: Collection[str] = ()
) -> int:
    """The table, what failed and why, the best point, the page; the exit code. final: run_ids of a
    search's trials whose end, whatever it was, is their result.
    """
    submit["ended"] = time.time()
    record_submit(sweep, submit, job)
    echo()
    states = [state for run_id, state in show(sweep) if run_id not in final]
    try:
        echo(f"report: {shown(report.write_sweep(sweep))}")
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
    standings, silence = backends_standings.look(runs)
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
    from its next one; whether there was anything to stop. Raises as cancel_runs.
    """
    from launch.console.cancel import cancel_runs

    points_, waiting = sweep_records.runs(sweep), waiting_trials(sweep)
    standings = backends_standings.standings(points_)
    if (
        not waiting
        and not sweep_records.is_submitted(sweep)
        and not any(s.is_active for s in standings.values())
    ):
        return False
    write_json(sweep.cancel, {"time": time.time()})
    echo(f"{sweep.sweep_id}: no further point begins")
    for job in waiting:  # one that begins now finds the word above
        queue.cancel(job, "PENDING")
    cancel_runs(points_, standings, now=now)
    return True


def show_plan_of(request: Request, loaded: Loaded, machine: Machine) -> Ready:
    """`batchyard show` of a sweep: its points, and the run of the first, of which the rest is
    shown.
    """
    sweep = sweep_of(request)
    ready = resolve(request, loaded, machine, sweep)
    standings, silence = backends_standings.look([r.run for _, r in ready])
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
