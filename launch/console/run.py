"""One run, from its request to its end, in the foreground or into the queue."""

from __future__ import annotations

import contextlib

from launch import errors, report, text, words
from launch.backends import docker, local, standings
from launch.console import foreground
from launch.runs import locks
from launch.runs.state import Standing
from launch.submit import refused, run_code, write
from launch.submit.request import Ready
from launch.submit.snapshot import Code
from launch.text import echo, plain
from trainer.config.files.layout import SweepDir
from trainer.config.files.outcome import EXIT_DONE, Outcome


def result_line(outcome: Outcome) -> str:
    """How it ended, in one line."""
    line = f"{outcome.status}" + (
        f" ({outcome.verdict})" if outcome.verdict != outcome.status else ""
    )
    if outcome.test_accuracy is not None:
        line += f": test accuracy {100 * outcome.test_accuracy:.2f} %"
        if (mean_iou := outcome.extra.get("test_mean_iou")) is not None:
            line += f", mean IoU {100 * mean_iou:.2f} %"
    elif outcome.status == "completed" and "test_not_finite" in outcome.extra:
        spoilt = words.plural(outcome.extra["test_not_finite"], "test sample")
        line += f": no test figure, since the outputs of {spoilt} are not finite,"
    elif (loss := outcome.extra.get("test_loss")) is not None:
        line += f": test loss {words.number(loss, 4)}"
    if outcome.global_step is not None:
        line += f" after {outcome.global_step} steps"
    if outcome.status != "completed" and outcome.cause:
        rank = f"rank {outcome.rank}: " if outcome.rank is not None else ""
        line += f": {rank}{outcome.cause}"
    return plain(line)


def run(ready: Ready, code: Code, front: foreground.Foreground) -> int:
    """A run or a point of a sweep: here to its end, on Slurm into the queue; one that is done or
    runs already is only told.

    Returns the exit code. Raises SubmitError, StartError and SlurmError.
    """
    if ready.plan.backend == "slurm" and ready.config.sweep:
        _adopt_sweep(SweepDir(ready.request.folders.runs / ready.config.sweep))
    lock = locks.take(ready.run.submit_lock, ready.run.run_id)
    is_first = not ready.run.config.exists()
    try:
        if ready.plan.backend == "slurm":
            from launch.backends import slurm

            slurm.adopt(ready.run)
        before = standings.standings([ready.run])[ready.run.run_id]
        if bad_file := ready.unreadable or (before.where if before.state == "unreadable" else None):
            to_try = (
                "put that file back from a copy, or remove it where no process writes it; --new"
                " starts another run"
            )
            raise errors.SubmitError(f"{ready.run.run_id} is unreadable: {bad_file}\n{to_try}")
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
        ready = write.prepare_run(ready, before, code, image, lambda line: echo(f"  {line}"), lock)
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
    from launch.backends import arrays

    if sweep.slurm.exists():
        lock = locks.take(sweep.queue_lock, sweep.sweep_id)
        try:
            arrays.adopt_sweep(sweep)
        finally:
            lock.release()


def _announce(ready: Ready, before: Standing) -> None:
    placement, threads = ready.placement, ready.config.execution.threads_per_rank
    nodes = f"{placement.nodes} nodes x " if placement.nodes > 1 else ""
    echo(
        f"{ready.run.run_id} on {ready.plan.backend}: {nodes}{placement.nproc_per_node} rank(s) on"
        f" {placement.device}, {threads} CPU thread(s) each"
    )
    echo(f"  {text.shown(ready.run.path)}")
    for note in ready.plan.notes:
        echo(f"  {note}")
    if before.state != "new":
        echo(f"  continues; it was {before.state}" + (f" ({before.where})" if before.where else ""))


def image_of(ready: Ready) -> str:
    """The image's name and digest, for the record of the code.

    Raises StartError where there is none.
    """
    image = ready.plan.image or ""
    digest = docker.image_id(ready.request.site.docker.client, image)
    if digest is None:
        make = "make image" + (" CPU=1" if ready.plan.device == "cpu" else "")
        raise errors.StartError(
            f"the engine has no image '{image}': {make} builds it; container.image or the site"
            " names another"
        )
    return f"{image} {digest}"


def _queue(ready: Ready) -> int:
    from launch.backends import slurm

    attempt, job_id = slurm.submit(ready.run, ready.plan)
    echo(f"queued as Slurm job {job_id}; its script: {text.shown(attempt.script)}")
    echo(
        f"batchyard logs {ready.run.run_id} -f follows it; batchyard cancel {ready.run.run_id}"
        " stops it after a checkpoint"
    )
    return EXIT_DONE


def _done(ready: Ready, before: Standing, code: Code) -> int:
    outcome = before.outcome
    assert outcome is not None
    echo(f"{ready.run.run_id} is done: {result_line(outcome)} ({outcome.attempt})")
    if run_code.differs(ready.run, code):
        echo("finished with other code than yours: --new trains with yours")
    echo(f"report: {text.shown(report.write(ready.run))}")
    return EXIT_DONE


def _ended(ready: Ready, outcome: Outcome) -> int:
    colour = {"completed": "green", "stopped": "yellow", "failed": "red"}[outcome.status]
    echo(ready.run.run_id, colour=colour, nl=False)
    echo(f" {result_line(outcome)}")
    if outcome.hint:
        echo(f"to try: {plain(outcome.hint)}")
    if outcome.status == "stopped":
        echo(f"batchyard submit {ready.run.run_id} continues it")
    with contextlib.suppress(OSError):  # a disk that ended the run takes no report
        echo(f"report: {text.shown(report.write(ready.run))}")
    return outcome.exit_code
