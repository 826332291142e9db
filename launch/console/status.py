"""What `batchyard status` shows: one row a run, from the run directories and one
question to Slurm.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from launch import words
from launch.backends.standings import Silence, look, unreadable
from launch.console import table
from launch.runs import progress as runs_progress
from launch.runs import records
from launch.runs.records import Unreadable
from launch.runs.state import Standing
from launch.text import echo, plain
from trainer.config.files.layout import Attempt, RunDir

COLOURS = {
    "completed": "green",
    "failed": "red",
    "dead": "red",
    "running": "cyan",
    "queued": "yellow",
    "stopped": "yellow",
    "pruned": "blue",
    "unknown": "magenta",
    "unreadable": "red",
}


CLOCKS_DIFFER_S = 2.0  # some file systems count whole seconds


def tell(silence: Silence | None, shown: Iterable[Standing] = ()) -> None:
    """Prints, beside what is known, that Slurm did not answer, and by which clock the runs shown
    are alive or dead.
    """
    if silence:
        echo(f"what Slurm has in its queue is not known: {silence}", err=True)
    ages = [where.lock_age_s for where in shown if where.lock_age_s is not None]
    if ages:
        echo(
            f"judged by locks of other machines: {words.plural(len(ages), 'run')};"
            f" {lock_ages(ages)}",
            err=True,
        )


def lock_ages(ages: list[float]) -> str:
    """How old locks of other machines are, by which runs are alive or dead.

    By this machine's clock: to know the file system's own, a file would have to be written.
    """
    if min(ages) < -CLOCKS_DIFFER_S:
        ahead = words.seconds(-min(ages))
        return (
            f"one was renewed {ahead} from now by this machine's clock, which is not the file"
            " system's"
        )
    return f"the oldest was renewed {words.seconds(max(1.0, *ages))} ago by this machine's clock"


def show(runs: list[RunDir]) -> None:
    """Prints the table of all runs, the newest last."""
    found = []
    states, silence = look(runs)
    for run in runs:
        row, where = row_of(run, states[run.run_id])
        found.append(
            (
                run.run_id,
                (where.state, COLOURS.get(where.state)),
                row.step,
                row.loss,
                row.accuracy,
                row.left,
                where.where or "-",
                row.started,
                row.took,
            )
        )
    header = ("run", "state", "step", "loss", "test accuracy", "left", "where", "started", "took")
    table.show(header, found, left=("run", "state", "where", "started"))
    tell(silence, states.values())


def row_of(run: RunDir, where: Standing) -> tuple[Row, Standing]:
    """What the tables show of a run, and where it stands: unreadable, too, where only a file is bad
    that the row is made from.
    """
    try:
        with records.reading(run):
            return Row.of(run, where), where
    except Unreadable as error:
        return Row.of(run, Standing("unreadable")), unreadable(run, error)


@dataclass(frozen=True)
class Row:
    """What the tables show of one run, each "-" where there is nothing. left: by its last step
    times; took: its last attempt.
    """

    step: str
    loss: str
    accuracy: str
    left: str
    started: str
    took: str

    @classmethod
    def of(cls, run: RunDir, where: Standing) -> Row:
        progress, outcome = (
            (runs_progress.progress(run) if where.attempt else runs_progress.NOTHING_YET),
            where.outcome,
        )
        accuracy = (
            outcome.test_accuracy
            if outcome and outcome.test_accuracy is not None
            else progress["test_accuracy"]
        )
        step = (
            outcome.global_step if outcome and outcome.global_step is not None else progress["step"]
        )
        record = (
            (records.read(where.attempt.record, records.ATTEMPT) or {}) if where.attempt else {}
        )
        started, running = record.get("started"), where.state == "running"
        ended = time.time() if running else record.get("ended")
        known = running and progress["total"] and progress["step_time_s"]
        return cls(
            f"{step if step is not None else '-'}/{progress['total'] or '?'}",
            words.number(progress["loss"]) if progress["loss"] is not None else "-",
            f"{100 * accuracy:.2f} %" if accuracy is not None else "-",
            (
                words.seconds((progress["total"] - (step or 0)) * progress["step_time_s"])
                if known
                else "-"
            ),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(started)) if started else "-",
            words.seconds(max(0.1, ended - started)) if started and ended else "-",
        )


def show_one(run: RunDir) -> None:
    """Prints all that there is to say about one run."""
    states, silence = look([run])
    row, where = row_of(run, states[run.run_id])
    echo(plain(run.run_id), bold=True, nl=False)
    echo("  ", nl=False)
    echo(where.state, colour=COLOURS.get(where.state))
    told: list[tuple[str, object]] = [
        ("step", row.step),
        ("loss", row.loss),
        ("test accuracy", row.accuracy),
        ("left", row.left),
        ("where", where.where or "-"),
        ("directory", run.path),
    ]
    if where.outcome and where.outcome.cause:
        told.append(("cause", where.outcome.cause))
    if where.outcome and where.outcome.hint:
        told.append(("to try", where.outcome.hint))
    if where.state == "dead" and where.attempt is None:  # its job is gone: Slurm may know why
        told.append(("more", f"batchyard why {run.run_id}"))
    for attempt in run.all_attempts():
        is_running = where.state == "running" and where.attempt == attempt
        told.append((attempt.id, "running" if is_running else _end_of(attempt)))
    for label, value in told:
        echo(f"  {plain(label):14} {plain(value)}")
    tell(silence, [where])


def _end_of(attempt: Attempt) -> str:
    try:
        end = records.outcome(attempt.outcome)
    except Unreadable as error:
        return f"unreadable: {error.within(attempt.path)}"
    return f"{end.status} ({end.verdict}) at step {end.global_step}" if end else "left no outcome"
