"""The points of a sweep are written and queued as arrays."""

from __future__ import annotations

import time
from concurrent.futures import wait
from contextlib import suppress
from typing import Any, NamedTuple

from launch import words
from launch.backends import slurm, standings
from launch.backends.arrays import adopt_sweep, submit_sweep
from launch.errors import SubmitError
from launch.plan.build import Plan
from launch.runs import locks, sweep_records
from launch.runs.array_listing import Task
from launch.runs.restarts import FIRST_GENERATION
from launch.runs.state import Standing, slurm_jobs
from launch.runs.sweep_records import Submit
from launch.submit import data as submit_data
from launch.submit import refused, snapshot
from launch.submit.data import Made, Together
from launch.submit.request import Ready
from launch.submit.snapshot import Code
from launch.submit.write import begins_in_array, job_text, plan_record, write_run, write_waiting
from launch.sweeps import reconcile as sweeps_reconcile
from launch.text import echo
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import RENEW_S, Lock, LockLost
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED


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
    lock = locks.take(sweep.queue_lock, sweep.sweep_id)
    first = [r.run for r in to_run if r.config.trial is None and not r.run.config.exists()]
    in_queue = set[RunDir]()
    try:  # held until all are queued: another submit finds them in the queue, or waits
        adopt_sweep(sweep)  # of one that died while we waited
        with submit_data.Together() as together:
            queued, data = _tasks(submit, _write(sweep, submit, to_run, code, together, lock), lock)
        lock.verify()
        shared = {"root": str(code.root), "record": snapshot.record(code)}
        arrays = submit_sweep(queued, sweep, shared, data, at_once) if queued else []
        in_queue = {task.run for task, _ in queued}
    finally:
        unqueued = [run for run in first if run not in in_queue]
        _discard_refused(sweep, unqueued, lock)
        lock.release()
        for run in unqueued:
            refused.remove_if_empty(run)
    submit["ended"] = time.time()
    record_submit(sweep, submit, job)
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
        jobs, unknown = slurm_jobs(mine)
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
            if begins_in_array(ready):
                write_waiting(ready, before)
                written[ready.run.run_id] = Written(
                    ready, together.ask(ready, code.root), waits=True
                )
            else:
                ready = write_run(ready, before, code, None, say, shared=True)
                written[ready.run.run_id] = Written(
                    ready, together.ask(ready, ready.run.code.resolve()), waits=False
                )
        except (SubmitError, OSError) as error:
            tell(sweep, submit, ready, error)

    for ready in to_run:
        locks.take(ready.run.submit_lock, ready.run.run_id, lock)
        if ready.run.config.exists():
            slurm.adopt(ready.run)  # of a submit of this run alone
            known.append(ready)
        else:  # was never queued: its data can be made ready while we look at the others
            write(ready, Standing("new"))
        lock.renew()
    now = standings.standings([ready.run for ready in known])
    for ready in known:
        before = now[ready.run.run_id]
        progress = "unreadable" if ready.unreadable else sweeps_reconcile.PROGRESS[before.state]
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
    texts = [job_text(point.ready.spec) if point.waits else None for point in written]
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
        submit_data.prepare_data(ready, say, made)
        return Task(ready.run, None)
    submit_data.check_micro_batches(ready, made)
    if made not in data:
        data.append(made)
        for note in made.get("notes", ()):
            say(note)
        if left_out := len(made.get("skipped", ())):
            say(
                f"{words.plural(left_out, 'picture')} cannot be used and are left out; the"
                " data.json of each point names them"
            )
    plan = plan_record(ready, FIRST_GENERATION)
    return Task(ready.run, {"job": text, "plan": plan, "data": data.index(made)})


def _note(submit: Submit, ready: Ready, error: Exception, *, is_new: bool = True) -> None:
    if is_new:
        echo(f"batchyard: {ready.run.run_id}: {error}", err=True)
    next(p for p in submit["points"] if p["run_id"] == ready.run.run_id)["error"] = str(error)


def tell(sweep: SweepDir, submit: Submit, ready: Ready, error: Exception) -> None:
    _note(submit, ready, error)
    record_submit(sweep, submit, ready.request.job.name)


def record_submit(sweep: SweepDir, submit: Submit, job: str) -> None:
    with suppress(OSError, SubmitError):  # what ran has its own record
        sweep_records.change(sweep, job, submit)
