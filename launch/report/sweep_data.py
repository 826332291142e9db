"""What the report and `batchyard status` know of a sweep: its points, the best one and what it was
chosen by, means over seeds.

Imports the standard library, trainer.config and launch.runs.records only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from launch.report import run_data
from launch.report.run_data import Facts, Row, as_row
from launch.runs import records
from launch.runs.records import Unreadable
from launch.words import NONE, finite, number, percent
from trainer.config.files.file_clock import Clock
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import Lock

SEED = "train.seed"


@dataclass(frozen=True)
class Point:
    """A point and its run. error: why the newest submit could not run it to an outcome of its own.
    unreadable: which of its files is bad, and why, where its state cannot be known.
    """

    axes: Row
    run: Facts
    error: str | None
    unreadable: str | None = None

    @property
    def state(self) -> str:
        """completed, stopped, pruned, failed, running, not started, no outcome (an attempt that
        left no word), unreadable.
        """
        if self.unreadable:
            return "unreadable"
        if self.run.running:
            return "running"
        if not self.run.attempts:
            return "not started"
        if self.run.outcome.get("verdict") == "pruned":
            return "pruned"
        return str(self.run.outcome.get("status") or "no outcome")

    @property
    def test_accuracy(self) -> float | None:
        """0 to 1; the outcome's, before the run's end that of the last evaluation."""
        said = finite(self.run.outcome.get("test_accuracy"))
        return said if said is not None else finite(self.run.last_eval().get("accuracy"))

    @property
    def losses(self) -> list[float | None]:
        """Of the newest evaluation of the train rows, which tables alone have, and of
        the test set.
        """
        evals = {str(row.get("split")): finite(row.get("loss")) for row in self.run.evals}
        return [evals.get("train"), evals.get("test")]

    @property
    def best(self) -> Row:
        """The best evaluation of the validation split: {split, metric, value, global_step,
        test_accuracy}; empty without one.
        """
        found = as_row(as_row(self.run.outcome.get("extra")).get("best"))
        return found if finite(found.get("value")) is not None else {}

    @property
    def was_validated(self) -> bool:
        """Whether it has a validation split to choose by."""
        return any(row.get("split") == "val" for row in self.run.evals)

    @property
    def lasted_s(self) -> float | None:
        """Seconds over all attempts."""
        known = [s for s, _ in (a.lasted_s() for a in self.run.attempts) if s is not None]
        return sum(known) if known else None

    @property
    def why(self) -> str | None:
        """Why it failed, and what to try; None where it did not."""
        if self.state in ("completed", "running"):
            return None
        if self.unreadable:
            return f"unreadable: {self.unreadable}"
        if self.error:
            return f"{'broke off' if self.run.attempts else 'could not start'}: {self.error}"
        if self.state == "no outcome":
            return "failed without a word; it continues from its last checkpoint"
        if self.state != "failed":
            return None
        cause, hint = (
            self.run.outcome.get("cause") or "no cause is known",
            self.run.outcome.get("hint"),
        )
        return f"failed: {cause}" + (f"; to try: {hint}" if hint else "")

    def value(self, axis: str) -> str:
        return axis_value(self.axes.get(axis))


@dataclass(frozen=True)
class Sweep:
    """A sweep as its files tell it at one moment. unwanted: run_ids of earlier submits that the
    newest no longer asks for.
    """

    path: Path
    sweep_id: str
    job: str
    job_text: str
    points: list[Point]
    unwanted: list[tuple[Row, str]]
    submits: list[Row]
    read_at: float

    def of_numbers(self) -> bool:
        """Whether the points learn numbers: they have losses and no accuracy."""
        return all(p.test_accuracy is None for p in self.points) and any(
            p.losses[1] is not None for p in self.points
        )

    def axes(self) -> list[str]:
        return list(dict.fromkeys(axis for point in self.points for axis in point.axes))

    def names(self) -> dict[str, str]:
        return short_names(self.axes())

    def label(self, axes: Row) -> str:
        """lr 0.1, seed 0"""
        names = self.names()
        return ", ".join(
            f"{names.get(axis, axis)} {axis_value(value)}" for axis, value in axes.items()
        )

    def count(self) -> dict[str, int]:
        """How many points are in each state, those that there are."""
        states = [p.state for p in self.points]
        order = (
            "completed",
            "pruned",
            "running",
            "stopped",
            "failed",
            "no outcome",
            "unreadable",
            "not started",
        )
        return {state: states.count(state) for state in order if state in states}


def failures(points: list[Point]) -> dict[str, list[Point]]:
    """The points that failed, by why: thirty of one cause are one line."""
    found: dict[str, list[Point]] = {}
    for point in points:
        if point.why:
            found.setdefault(point.why, []).append(point)
    return found


def read(sweep: SweepDir, clock: Clock | None = None) -> Sweep:
    """The points of the newest submit, from whatever of their runs is there. clock: for the ages of
    other machines' locks; this machine's, for commands that write nothing. Raises Unreadable where
    the sweep's record is bad.
    """
    record = records.read(sweep.record, records.SWEEP) or {}
    submits = list(record.get("submits") or [])
    newest = submits[-1]["points"] if submits else []
    wanted = {json.dumps(p["axes"], sort_keys=True) for p in newest}
    earlier = {
        json.dumps(p["axes"], sort_keys=True): (p["axes"], p["run_id"])
        for s in submits
        for p in s["points"]
    }
    return Sweep(
        path=sweep.path,
        sweep_id=sweep.sweep_id,
        job=str(record.get("job") or sweep.sweep_id.partition(".")[0]),
        job_text=sweep.job.read_text(errors="replace") if sweep.job.is_file() else "",
        points=[_point(sweep, p, clock) for p in newest],
        unwanted=[found for key, found in earlier.items() if key not in wanted],
        submits=submits,
        read_at=time.time(),
    )


def _point(sweep: SweepDir, recorded: Row, clock: Clock | None) -> Point:
    run = sweep.run(recorded["run_id"])
    found = run_data.read(run)
    if found.running:  # a lock file alone does not tell a run from a dead one
        found = replace(found, running=Lock(run.lock).holder(clock) is not None)
    unreadable = None if found.running or found.outcome else _bad_file(run)
    return Point(recorded["axes"], found, recorded.get("error"), unreadable)


def _bad_file(run: RunDir) -> str | None:
    """Which file of a run that seems to have left no word is bad, and why; None: it has
    left none.
    """
    try:
        records.check_files(run)
    except Unreadable as error:
        return error.within(run.path)
    return None


@dataclass(frozen=True)
class Best:
    """The best completed point. by: what it was chosen by; equal: how many others have the same
    value.
    """

    point: Point
    by: str
    value: str
    test_accuracy: float | None
    by_validation: bool
    equal: int

    @property
    def told(self) -> str:
        """What it was chosen by, in a sentence's end."""
        others = (
            f" ({self.equal} more {'is' if self.equal == 1 else 'are'} as good: the first of them)"
            if self.equal
            else ""
        )
        if self.by_validation:
            there = (
                f"; its test accuracy there is {percent(self.test_accuracy)}"
                if self.test_accuracy is not None
                else ""
            )
            return f"chosen by the {self.by}, {self.value}{others}{there}"
        return (
            f"chosen by the {self.by}, {self.value}{others}. This is a choice on the test set, so"
            " the figure is too good for new pictures; train.data.validation holds out a part to"
            " choose by"
        )


def best(points: list[Point]) -> Best | None:
    """By the validation split where every completed point has one, else by the last test accuracy.

    None: none is completed.

    A point whose validations were all not finite is not the best one, and leads to no choice on the
    test set.
    """
    completed = [p for p in points if p.state == "completed"]
    done = [p for p in completed if p.best or not p.was_validated]
    if completed and not done:
        return None
    metrics = {p.best.get("metric") for p in done}
    if len(metrics) == 1 and (metric := metrics.pop()) in ("accuracy", "mean_iou", "loss"):
        ranked = [(p.best["value"] * (-1 if metric == "loss" else 1), p) for p in done]
    else:
        metric = None
        ranked = [(p.test_accuracy, p) for p in done if p.test_accuracy is not None]
    if not ranked:
        return None
    top, point = max(ranked, key=lambda pair: pair[0])  # of equal ones the first
    equal = sum(value == top for value, _ in ranked) - 1
    if metric is None:
        return Best(
            point,
            by="last test accuracy",
            value=percent(top),
            test_accuracy=point.test_accuracy,
            by_validation=False,
            equal=equal,
        )
    value = number(-top, 4) if metric == "loss" else percent(top)
    return Best(
        point,
        by=f"best validation {metric}",
        value=value,
        test_accuracy=finite(point.best.get("test_accuracy")),
        by_validation=True,
        equal=equal,
    )


@dataclass(frozen=True)
class Group:
    """The completed points that differ in their seed alone. figures: of each, mean and standard
    deviation (None: of one value).
    """

    axes: Row
    seeds: int
    test_accuracy: tuple[float, float | None] | None
    validation: tuple[float, float | None] | None


def over_seeds(points: list[Point]) -> list[Group]:
    """One group for each combination of the other axes, in the points' order; empty where the seed
    is no axis.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        if SEED in point.axes:
            groups.setdefault(json.dumps(_without_seed(point.axes), sort_keys=True), []).append(
                point
            )
    found = []
    for members in groups.values():
        done = [p for p in members if p.state == "completed"]
        tests = [p.test_accuracy for p in done if p.test_accuracy is not None]
        found.append(
            Group(
                _without_seed(members[0].axes),
                len(done),
                _spread(tests),
                _spread([p.best["value"] for p in done if p.best]),
            )
        )
    return found if any(len(members) > 1 for members in groups.values()) else []


def best_group(groups: list[Group], chosen: Best | None) -> int | None:
    """The number of the group with the best mean of what the best point was chosen by."""
    if chosen is None:
        return None
    sign = -1 if chosen.by.endswith("loss") else 1
    means = [g.validation if chosen.by_validation else g.test_accuracy for g in groups]
    ranked = [(sign * figures[0], -i) for i, figures in enumerate(means) if figures]
    return -max(ranked)[1] if ranked else None


def spread(figures: tuple[float, float | None] | None, *, in_percent: bool = True) -> str:
    """98.33 ± 0.21 %, without the second part where there is one value."""
    if figures is None:
        return NONE
    middle, deviation = figures
    texts = [
        f"{100 * v:.2f}" if in_percent else number(v, 4)
        for v in (middle, deviation)
        if v is not None
    ]
    return " ± ".join(texts) + (" %" if in_percent else "")


def validation(point: Point) -> str | None:
    """The best evaluation of the validation split."""
    if not point.best:
        return None
    value = point.best["value"]
    return f"loss {number(value, 4)}" if point.best.get("metric") == "loss" else percent(value)


def _spread(values: list[float]) -> tuple[float, float | None] | None:
    """Mean and sample standard deviation (over n - 1)."""
    return (mean(values), stdev(values) if len(values) > 1 else None) if values else None


def _without_seed(axes: Row) -> Row:
    return {axis: value for axis, value in axes.items() if axis != SEED}


def short_names(axes: Iterable[str]) -> dict[str, str]:
    """The shortest endings that tell the axes apart: train.optimizer.lr -> lr."""
    names = {}
    every = list(axes)
    for axis in every:
        parts = axis.split(".")
        endings = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names[axis] = next(
            e
            for e in endings
            if e == axis or not any(f".{o}".endswith(f".{e}") for o in every if o != axis)
        )
    return names


def told(axes: Row) -> str:
    """Axes as a person reads them: optimizer sgd, lr 0.02, momentum 0.5."""
    parts = []
    for axis, name in short_names(axes).items():
        value = axes[axis]
        if isinstance(value, dict):
            of_value = {key: v for key, v in value.items() if key != "name"}
            parts += [
                f"{name} {value.get('name', '')}".rstrip(),
                *(f"{key} {axis_value(v)}" for key, v in of_value.items()),
            ]
        else:
            parts.append(f"{name} {axis_value(value)}")
    return ", ".join(parts)


def axis_value(value: Any) -> str:
    """As a person writes it in the job."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
