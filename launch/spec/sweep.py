"""`sweep` in a job file: its points, their mistakes, what a submit has to do for each.

Pure: reads no file and no clock.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from launch.spec.yaml_tree import Path_, Place, Problem, Tree
from trainer.config.files.study import Halving
from trainer.config.run import TrainConfig
from trainer.config.strict import Strict

MOST_POINTS = 10_000  # all are checked, twice where there is a fallback: one to two seconds
# Keys of a job that change no weights: another value there would be the same run.
OUTSIDE = (
    "description",
    "execution",
    "resources",
    "container",
    "tracking",
    "after",
    "sweep",
    "published",
    "extends",
    "fallback",
)


def _as_written(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """A whole number stays one, which a `float` would not let it."""
    check(value)
    return value


def _no_mapping(value: Any) -> Any:
    if isinstance(value, dict):
        raise ValueError(
            "found a mapping; an axis is one dotted key with a list, as in train.optimizer.lr:"
            " [0.1, 0.2]"
        )
    return value


Number = Annotated[float, WrapValidator(_as_written)]
Values = Annotated[list[Any], BeforeValidator(_no_mapping), Field(min_length=1)]


class Range(Strict):
    """What a value is drawn from: whole numbers where low and high are."""

    low: Number = Field(description="the least that is drawn")
    high: Number = Field(description="the most that is drawn")
    log: bool = Field(default=False, description="uniform in the logarithm")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is more than high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log: true takes a low above 0, found {self.low}")
        return self


class Random(Strict):
    """`n` draws; each is a function of seed, its number and the axis, so that more draws or axes
    leave the first ones alone.
    """

    n: int = Field(ge=1, description="how many points are drawn")
    seed: int = Field(0, ge=0)
    ranges: dict[str, Range] = Field(min_length=1, description="axis: {low, high, log}")


class Search(Strict):
    """Trials that optuna chooses by the results of those before: by `train.best_metric` of the
    validation split.
    """

    trials: int = Field(ge=1, le=MOST_POINTS, description="how many points are chosen")
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="of optuna; tpe draws its first ten at random"
    )
    seed: int = Field(0, ge=0)
    ranges: dict[str, Range] = Field({}, description="axis: {low, high, log}")
    choices: dict[str, Values] = Field({}, description="axis: [values]")
    halving: Halving | None = Field(
        None, description="stops trials that are worse than others were after as many epochs"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.ranges and not self.choices:
            raise ValueError(
                "has no axis: give ranges, choices, or both, as in ranges: {train.optimizer.lr:"
                " {low: 0.01, high: 1}}"
            )
        return self


class Sweep(Strict):
    """Runs of one job that differ in their axes, which are dotted keys below `train`.

    Grid and random: each draw with each grid point.
    """

    grid: dict[str, Values] | None = Field(
        None, min_length=1, description="axis: [values]; every combination"
    )
    random: Random | None = None
    search: Search | None = None
    array_parallelism: int = Field(
        256, ge=1, description="on Slurm: how many points run at once, at most; elsewhere it is one"
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.grid is None and self.random is None and self.search is None:
            raise ValueError(
                "is empty: give grid, random, or both, or search, as in grid: {train.optimizer.lr:"
                " [0.1, 0.2]}"
            )
        if self.search and (self.grid or self.random):
            raise ValueError(
                "search chooses all points itself: leave out grid and random, or write their axes"
                " as its choices"
            )
        return self

    def axes(self) -> dict[str, Path_]:
        """Each axis and where it stands in the job; one that is in two parts, where it is drawn."""
        if self.search:
            choices = {a: ("sweep", "search", "choices", a) for a in self.search.choices}
            return {**choices, **{a: ("sweep", "search", "ranges", a) for a in self.search.ranges}}
        ranges = self.random.ranges if self.random else {}
        return {
            **{a: ("sweep", "grid", a) for a in self.grid or {}},
            **{a: ("sweep", "random", "ranges", a) for a in ranges},
        }

    def size(self) -> int:
        """How many points there are."""
        if self.search:
            return self.search.trials
        return math.prod(map(len, (self.grid or {}).values())) * (
            self.random.n if self.random else 1
        )


@dataclass(frozen=True)
class Point:
    """One value for each axis. places: where each value stands in the job.

    A job without a sweep is a point without axes.
    """

    axes: dict[str, Any] = field(default_factory=dict)
    places: dict[str, Path_] = field(default_factory=dict)

    def __str__(self) -> str:
        """As one would type it behind --set."""
        return " ".join(f"{axis}={text(value)}" for axis, value in self.axes.items())

    @property
    def key(self) -> str:
        return key(self.axes)


def key(axes: dict[str, Any]) -> str:
    """Equal for equal axis values, in whatever order."""
    return json.dumps(axes, sort_keys=True)


def text(value: Any) -> str:
    """An axis value as a person writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def draw(where: Range, seed: int, number: int, axis: str) -> int | float:
    """The value of the `number`th draw, from a hash; a float has four digits, so that it can be
    read and typed again.
    """
    digest = hashlib.sha256(f"{seed}/{number}/{axis}".encode()).digest()
    part = int.from_bytes(digest[:7]) / 2**56  # in [0, 1), exactly
    low, high = where.low, where.high
    whole = isinstance(low, int) and isinstance(high, int)
    end = high + 1 if whole else high
    value = low * (end / low) ** part if where.log else low + (end - low) * part
    return max(low, min(high, math.floor(value) if whole else float(f"{value:.4g}")))


def points(sweep: Sweep, without: Iterable[str] = ()) -> list[Point]:
    """Every draw with every combination, the last axis fastest. without: axes to leave out."""
    grid = {
        axis: list(enumerate(values))
        for axis, values in (sweep.grid or {}).items()
        if axis not in without
    }
    combinations = list(itertools.product(*grid.values()))
    found = []
    for number in range(sweep.random.n if sweep.random else 1):
        ranges = (
            {a: r for a, r in sweep.random.ranges.items() if a not in without}
            if sweep.random
            else {}
        )
        drawn = {
            axis: draw(where, sweep.random.seed, number, axis)
            for axis, where in ranges.items()
            if sweep.random
        }
        for combination in combinations:
            chosen = dict(zip(grid, combination, strict=True))
            axes = {**drawn, **{axis: value for axis, (_, value) in chosen.items()}}
            places: dict[str, Path_] = {axis: ("sweep", "random", "ranges", axis) for axis in drawn}
            places |= {axis: ("sweep", "grid", axis, i) for axis, (i, _) in chosen.items()}
            found.append(Point(axes, places))
    return found


def probes(search: Search, without: Iterable[str] = ()) -> list[Point]:
    """Points by which a search is checked before there is one: the first value of every axis, then
    each other value (of a range, its other end) with the first ones of all others. without: axes to
    leave out.
    """
    values: dict[str, list[tuple[Any, Path_]]] = {}
    for axis, choices in search.choices.items():
        values[axis] = [
            (value, ("sweep", "search", "choices", axis, i)) for i, value in enumerate(choices)
        ]
    for axis, r in search.ranges.items():
        ends = {"low": r.low, "high": r.high} if r.high != r.low else {"low": r.low}
        values[axis] = [
            (value, ("sweep", "search", "ranges", axis, end)) for end, value in ends.items()
        ]
    values = {axis: of_axis for axis, of_axis in values.items() if axis not in without}
    first = {axis: of_axis[0] for axis, of_axis in values.items()}
    chosen = [
        first,
        *({**first, axis: other} for axis, of_axis in values.items() for other in of_axis[1:]),
    ]
    return [
        Point({a: value for a, (value, _) in c.items()}, {a: place for a, (_, place) in c.items()})
        for c in chosen
    ]


def search_problems(search: Search, trains: list[TrainConfig], tree: Tree) -> list[Problem]:
    """What is wrong with a search whose probes are right. trains: theirs."""
    found: list[tuple[Path_, str]] = []
    if "train.best_metric" in search.choices:
        where = ("sweep", "search", "choices", "train.best_metric")
        found.append((where, "is what trials are compared by: it must be the same for all"))
    if not all(train.data.has_validation() for train in trains):
        hint = (
            "needs a validation split, as in train.data.validation: 0.1; nothing is ever chosen on"
            " the test set"
        )
        found.append((("sweep", "search"), hint))
    if search.halving:
        epochs = max(train.epochs for train in trains)
        first = min(
            -(-search.halving.min_epochs // t.evaluate_every_epochs) * t.evaluate_every_epochs
            for t in trains
        )
        if first >= epochs:
            told = (
                f"stops nothing: trials would first be compared after epoch {first}, and have"
                f" {epochs}"
            )
            found.append((("sweep", "search", "halving"), told))
    return [Problem(tree.place(path, of_key=True), path, message) for path, message in found]


def axis_problems(sweep: Sweep, tree: Tree) -> dict[str, Problem]:
    """What is wrong with the axes' names, by axis."""
    found: dict[str, Problem] = {}
    axes = sweep.axes()
    for axis, path in axes.items():
        parts = axis.split(".")
        around = next((other for other in axes if axis.startswith(f"{other}.")), None)
        message = None
        if not all(parts):
            message = "expected a dotted key below train, as in train.optimizer.lr"
        elif parts[0] in OUTSIDE:
            message = (
                f"only train.* makes another run; {parts[0]} leaves the run_id, and so the run, as"
                " it is"
            )
        elif axis in (sweep.grid or {}) and path[1] == "random":
            message = "is an axis of grid already: leave out either"
        elif sweep.search and axis in sweep.search.choices and path[2] == "ranges":
            message = "is an axis of choices already: leave out either"
        elif around:
            message = f"lies inside the axis {around}: leave out either"
        if message:
            found[axis] = Problem(tree.place(path, of_key=True), path, message)
    return found


def overlay(point: Point, tree: Tree) -> Tree:
    """The point's values as a tree to lay on the job `tree`; every part has the place where it is
    written.
    """
    over = Tree({})
    for axis, value in point.axes.items():
        parts, where = tuple(axis.split(".")), point.places[axis]
        target = over.value
        for part in parts[:-1]:
            target = target.setdefault(part, {})
        target[parts[-1]] = value
        for end in range(1, len(parts) + 1):
            if parts[:end] not in tree.keys or end == len(parts):
                over.keys[parts[:end]] = tree.place(where, of_key=True)
        over.values[parts] = tree.place(where)
        for inner in _paths_in(value):
            for own, theirs in ((over.keys, tree.keys), (over.values, tree.values)):
                if (place := theirs.get((*where, *inner))) is not None:
                    own[(*parts, *inner)] = place
    return over


def _paths_in(value: Any) -> Iterator[Path_]:
    """The path of everything inside a value."""
    children: Iterable[tuple[str | int, Any]] = ()
    if isinstance(value, dict):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield (key,)
        for path in _paths_in(child):
            yield (key, *path)


def attribute(at_points: list[tuple[Point, list[Problem]]], tree: Tree) -> list[Problem]:
    """The mistakes of all points, each once: at the axis or the value that makes it, else with the
    point that has it.
    """
    found: dict[tuple[Place, Path_, str], list[Point]] = {}
    drawn: set[Path_] = set()
    for point, problems in at_points:
        for problem in problems:
            told = _told(point, problem, tree)
            if told.path[:2] == ("sweep", "random") and problem is not told:
                if told.path in drawn:
                    continue  # of an axis whose range is wrong, the first draw is enough
                drawn.add(told.path)
            found.setdefault((told.place, told.path, told.message), []).append(point)
    result = []
    for (place, path, message), whose in found.items():
        if path[0] != "sweep" and len(whose) < len(at_points):
            more = f" and {len(whose) - 1} more" if len(whose) > 1 else ""
            message = f"{message} (at the sweep's point {whose[0]}{more})"
        result.append(Problem(place, path, message))
    return result


def _told(point: Point, problem: Problem, tree: Tree) -> Problem:
    """The problem at the axis that it comes from; itself where it comes from none."""
    for axis, where in point.places.items():
        parts = tuple(axis.split("."))
        of_key = where[: 3 if where[1] == "grid" else 4]
        if problem.message.startswith("unknown key") and problem.path == parts[: len(problem.path)]:
            return Problem(
                tree.place(of_key, of_key=True), of_key, _with_whole_axis(problem, parts)
            )
        if problem.path[: len(parts)] == parts:
            message = (
                problem.message.replace("found", "drew", 1)
                if where[1] == "random"
                else problem.message
            )
            inner = (*where, *problem.path[len(parts) :])
            place = tree.place(where) if problem.message.startswith("is missing") else problem.place
            return Problem(place, inner, message)
        if problem.path == parts[: len(problem.path)] and problem.message.startswith(
            "found a mapping"
        ):
            whole = ".".join(map(str, problem.path))
            return Problem(
                tree.place(of_key, of_key=True),
                of_key,
                f"{whole} holds no keys: it takes a value as a whole",
            )
    return problem


def _with_whole_axis(problem: Problem, parts: tuple[str, ...]) -> str:
    """The suggestion as an axis that can be typed: 'train.optimizer.lr', not 'lr'."""
    before, after = parts[: len(problem.path) - 1], parts[len(problem.path) :]

    def whole(suggested: re.Match[str]) -> str:
        middle = suggested[1].split(".")
        return (
            "did you mean"
            f" '{'.'.join([*(before if middle[0] != 'train' else ()), *middle, *after])}'"
        )

    return re.sub(r"did you mean '([^']+)'", whole, problem.message, count=1)


def duplicates(with_digests: list[tuple[Point, str]], tree: Tree) -> list[Problem]:
    """Points that would be one run: told at each value that repeats another, else by the first such
    pair.
    """
    first: dict[str, Point] = {}
    values: dict[Path_, Problem] = {}
    pairs: list[Problem] = []
    for point, digest in with_digests:
        other = first.setdefault(digest, point)
        if other is point:
            continue
        differ = [axis for axis in point.axes if point.places[axis] != other.places[axis]]
        if len(differ) == 1:
            path, earlier = point.places[differ[0]], other.places[differ[0]]
            message = (
                f"{text(point.axes[differ[0]])} makes the same run as value {earlier[-1]}"
                f" ({text(other.axes[differ[0]])})"
            )
            values.setdefault(path, Problem(tree.place(path), path, message))
        elif differ:
            path, message = ("sweep", "grid"), f"the points {other} and {point} are the same run"
            pairs.append(Problem(tree.place(path, of_key=True), path, message))
        else:
            path, message = (
                (
                    "sweep",
                    "random",
                ),
                f"two draws are the same run, {point}; try fewer, another seed or a wider range",
            )
            pairs.append(Problem(tree.place(path, of_key=True), path, message))
    return list(values.values()) or pairs[:1]
