"""A job file becomes a JobSpec: bases and overrides merged, every mistake found with its place.

Knows YAML, no cluster.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from launch import environment
from launch.spec import published as publishing
from launch.spec import sweep as sweeping
from launch.spec import yaml_tree
from launch.spec.messages import show, validate
from launch.spec.published import Published
from launch.spec.sweep import Point, Search, Sweep
from launch.spec.yaml_tree import Path_, Place, Problem, SpecError, Tree
from trainer.config.conflicts import conflicts
from trainer.config.run import Execution, Tracking, TrainConfig
from trainer.config.strict import Strict

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}$")  # legal for docker, Slurm and wandb
ALSO_KNOWN = ("extends", "fallback")


class Resources(Strict):
    """What the job asks for, in submitit's words.

    One Slurm task a node; torchrun starts the ranks in it.
    """

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    nproc_per_node: int | None = Field(
        None, ge=1, description="ranks a node; null: one a GPU, one without GPUs"
    )
    cpus_per_task: int | None = Field(
        None, ge=1, description="CPUs of the node's one task, shared by its ranks"
    )
    mem_gb: float | None = Field(None, gt=0, description="of a node")
    timeout_min: int = Field(60, ge=1, description="the time limit of one attempt, in minutes")

    def ranks_per_node(self) -> int:
        return self.nproc_per_node or max(1, self.gpus_per_node)


class Container(Strict):
    """The image of the docker backend."""

    image: str | None = Field(
        None, min_length=1, description="null: the site's, else batchyard:cpu or batchyard:cuda"
    )


class JobSpec(Strict):
    """A whole job, after `extends`, `fallback` and `--set`."""

    description: str | None = None
    train: TrainConfig
    execution: Execution = Execution()
    resources: Resources = Resources()
    container: Container = Container()
    tracking: Tracking = Tracking()
    after: str | None = Field(
        None,
        min_length=1,
        description=(
            "a job beside this one whose run must be completed first; it is submitted along"
        ),
    )
    sweep: Sweep | None = None
    published: list[Published] = Field(
        [], description="figures that others print of this: what `batchyard results` compares with"
    )


@dataclass(frozen=True)
class Job:
    """A job's name and its file. text: what will stand there, where that is not written yet."""

    name: str
    path: Path
    text: str | None = None


def find(job: str, project: Path) -> Job:
    """JOB is a name in the project's jobs/ or a path to a YAML file.

    Raises SpecError with the nearest names.
    """
    if job.endswith((".yaml", ".yml")) or "/" in job:
        path, name = Path(job), Path(job).stem
    else:
        path, name = project / "jobs" / f"{job}.yaml", job
    if not path.is_file():
        known = [j.name for j in find_all(project)]
        near = difflib.get_close_matches(name, known, 1)
        raise SpecError(
            [
                Problem(
                    Place(job),
                    (),
                    "no such job"
                    + (f"; did you mean '{near[0]}'?" if near else "")
                    + f" known: {', '.join(known) or 'none'}; or give a path to a .yaml file",
                )
            ]
        )
    environment.printable(path.absolute(), "the job's file")
    if not NAME.match(name):
        raise SpecError(
            [
                Problem(
                    Place(str(path)),
                    (),
                    f"a job's name matches {NAME.pattern[:-1]}, this one is {name!r}",
                )
            ]
        )
    return Job(name, path)


def find_all(project: Path) -> list[Job]:
    """Every job of the project, by name."""
    return [Job(p.stem, p) for p in sorted((project / "jobs").glob("*.yaml"))]


@dataclass(frozen=True)
class Loaded:
    """A job: one spec, or one for each point of its sweep; of a search, for each of its probes.
    written: all of it as data.
    """

    written: dict[str, Any]
    points: list[Point]  # of a job without a sweep: one, without axes
    specs: list[JobSpec]

    @property
    def is_sweep(self) -> bool:
        return bool(self.points[0].axes)

    @property
    def search(self) -> Search | None:
        sweep = self.written.get("sweep")
        return Sweep.model_validate(sweep).search if sweep else None


def load(job: Job, settings: tuple[str, ...] = (), *, without_gpu: bool) -> JobSpec:
    """The spec of a job; of a sweep, its first point's.

    Raises SpecError with every mistake, those of all points too.
    """
    return load_points(job, settings, without_gpu=without_gpu).specs[0]


def load_points(job: Job, settings: tuple[str, ...] = (), *, without_gpu: bool) -> Loaded:
    """`extends` < the file < `fallback` (where the chosen place has no GPU) < a sweep's axis <
    `--set`.

    The spec is checked with and without its fallback, so that a mistake in it is found wherever the
    job is checked. Raises SpecError with every mistake.
    """
    tree = (
        _with_bases(job.path, ())
        if job.text is None
        else yaml_tree.parse(job.text, _shown(job.path))
    )
    overlays, problems = [], []
    for option in settings:
        try:
            overlays.append(yaml_tree.setting(option))
        except SpecError as error:
            problems += error.problems
    fallback, found = _fallback(tree)
    problems += found + _after_problems(job.path, tree)
    variants = [tree] if fallback is None else [tree, yaml_tree.merge(tree, fallback)]
    loaded = []
    for variant in variants:
        for overlay in overlays:
            variant = yaml_tree.merge(variant, overlay)
        made, found = _check(variant, settings)
        loaded.append(made)
        problems += found
    # --set may take away the point or the epoch that a figure is of
    if not problems and not settings:
        problems = _published_problems(loaded[0], tree)
    if problems:
        problems = list(dict.fromkeys(problems))
        raise SpecError(
            sorted(problems, key=lambda p: (p.place.source, p.place.line or 0, p.place.column or 0))
        )
    return loaded[-1] if without_gpu else loaded[0]


def _published_problems(loaded: Loaded, tree: Tree) -> list[Problem]:
    published = loaded.specs[0].published
    if published and loaded.search:
        message = "a search chooses its points: no figure is of them"
        return [Problem(tree.place(("published",), of_key=True), ("published",), message)]
    return publishing.problems(
        published, loaded.points, [spec.train for spec in loaded.specs], tree
    )


def _after_problems(path: Path, tree: Tree) -> list[Problem]:
    """An `after`, or weights of a job, that leads nowhere, in a circle, or to a sweep, which has no
    one result.
    """
    chain, (name, of) = [path.resolve()], _waits_for(path, tree.value)
    place, run = tree.place(of), _of_weights(tree.value)
    if of == ("after",) and isinstance(run, str) and run != name:
        message = (
            f"the run that brings the weights is waited for, and `after` names {show(name)}: leave"
            " out `after`"
        )
        return [
            Problem(tree.place(("train", "weights", "run")), ("train", "weights", "run"), message)
        ]
    while isinstance(name, str):
        target = beside(chain[-1], name)
        if problem := _missing(target, place, of):
            return [problem]
        if target.resolve() in chain:
            names = " -> ".join(p.name for p in (*chain, target))
            return [Problem(place, of, f"goes in a circle: {names}")]
        chain.append(target.resolve())
        before = _with_bases(target, ()).value
        if before.get("sweep") is not None:
            return [
                Problem(
                    place,
                    of,
                    f"{target.name} is a sweep, which has no one result; name a job without one",
                )
            ]
        name, _ = _waits_for(target, before)
    return []


def _waits_for(path: Path, value: dict[str, Any]) -> tuple[Any, Path_]:
    """What names the job that another one waits for, and the key that does; None where nothing
    does.
    """
    if (run := _of_weights(value)) is None or value.get("after") is not None:
        return value.get("after"), ("after",)
    return (run if isinstance(run, str) and beside(path, run).is_file() else None), (
        "train",
        "weights",
        "run",
    )


def _of_weights(value: dict[str, Any]) -> Any:
    """`train.weights.run` of a job that may be wrong in any way."""
    for key in ("train", "weights", "run"):
        value = value.get(key) if isinstance(value, dict) else None  # type: ignore[assignment]
    return value


def beside(path: Path, name: str) -> Path:
    """The file of a job that another one names."""
    return path.parent / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")


def _missing(target: Path, place: Place, of: Path_) -> Problem | None:
    if target.is_file():
        return None
    near = difflib.get_close_matches(target.stem, [p.stem for p in target.parent.glob("*.yaml")], 1)
    return Problem(
        place,
        of,
        f"there is no {_shown(target)}" + (f"; did you mean '{near[0]}'?" if near else ""),
    )


def _fallback(tree: Tree) -> tuple[Tree | None, list[Problem]]:
    """Takes `fallback` out of the tree: what to lay on it, None where there is nothing, and what is
    wrong with it.
    """
    fallback = Tree(tree.value.pop("fallback", None))
    for own, theirs in ((fallback.keys, tree.keys), (fallback.values, tree.values)):
        own.update({path[1:]: place for path, place in theirs.items() if path[:1] == ("fallback",)})
    if isinstance(fallback.value, dict):
        problems = []
        for name, why in (
            ("sweep", "a sweep's points are the same wherever they run"),
            ("published", "is of the job in full"),
        ):
            if name in fallback.value:
                del fallback.value[name]
                path, message = ("fallback", name), f"{why}: write it beside `train`"
                problems.append(Problem(tree.place(path, of_key=True), path, message))
        return fallback, problems
    if ("fallback",) in tree.keys and fallback.value is not None:
        return None, [
            Problem(
                tree.place(("fallback",)),
                ("fallback",),
                f"found {show(fallback.value)}; expected a mapping",
            )
        ]
    return None, []


def _check(variant: Tree, settings: tuple[str, ...]) -> tuple[Loaded, list[Problem]]:
    """The specs that a merged job holds, one a point, and what is wrong with it."""
    spec, found = validate(JobSpec, variant, ALSO_KNOWN)
    # each point copies it, and a sweep may have ten thousand places
    plain = yaml_tree.without(variant, "sweep")
    written = variant.value.get("sweep")
    in_sweep = [p for p in found if p.path[:1] == ("sweep",)]
    # without a right sweep no axis can be laid on: what it would give is not missing
    if written is None or in_sweep:
        axes = _axes_as_written(written)
        found = [
            p
            for p in found
            if not (p.message.startswith("is missing") and ".".join(map(str, p.path)) in axes)
        ]
        return Loaded(variant.value, [Point()], [spec] if spec else []), found + _conflicts(
            spec, plain
        )
    sweep = Sweep.model_validate(written)
    of_axes = sweeping.axis_problems(sweep, variant)
    problems = [*of_axes.values(), *_set_on_axes(sweep, settings)]
    if sweep.size() > sweeping.MOST_POINTS:
        message = f"makes {sweep.size():,} points; at most {sweeping.MOST_POINTS:,}"
        return Loaded(variant.value, [], []), [
            *problems,
            Problem(variant.place(("sweep",), of_key=True), ("sweep",), message),
        ]
    points = (
        sweeping.probes(sweep.search, of_axes)
        if sweep.search
        else sweeping.points(sweep, without=of_axes)
    )
    specs, at_points = [], []
    for point in points:
        tree = yaml_tree.merge(plain, sweeping.overlay(point, variant))
        spec, found = validate(JobSpec, tree, ALSO_KNOWN)
        at_points.append((point, found + _conflicts(spec, tree)))
        specs += [spec] if spec else []
    problems += sweeping.attribute(at_points, variant)
    if not problems and sweep.search:
        problems = sweeping.search_problems(sweep.search, [s.train for s in specs], variant)
    if not problems:
        problems = sweeping.duplicates(
            [(p, s.train.digest()) for p, s in zip(points, specs, strict=True)], variant
        )
    return Loaded(variant.value, points, specs), problems


def _axes_as_written(sweep: Any) -> set[str]:
    """The names of the axes of a sweep that may be wrong in any way."""
    parts = (
        [sweep.get(name) for name in ("grid", "random", "search")]
        if isinstance(sweep, dict)
        else []
    )
    parts += [
        part.get(name) for part in parts if isinstance(part, dict) for name in ("ranges", "choices")
    ]
    return {str(name) for part in parts if isinstance(part, dict) for name in part}


def _set_on_axes(sweep: Sweep, settings: tuple[str, ...]) -> list[Problem]:
    """`--set` on what the sweep varies: it would make all points one."""
    problems = []
    for option in settings:
        name = option.partition("=")[0]
        for axis, path in sweep.axes().items():
            if f"{axis}.".startswith(f"{name}.") or name.startswith(f"{axis}."):
                message = (
                    f"is an axis of the sweep ({'.'.join(map(str, path[:-1]))}): change its values,"
                    " or --set sweep=null"
                )
                problems.append(Problem(Place(f"--set {option}"), (axis,), message))
    return problems


def _conflicts(spec: JobSpec | None, tree: Tree) -> list[Problem]:
    """Settings of `train` that do not go together, among those that are right by themselves."""
    written = tree.value.get("train")
    parts = dict(spec.train) if spec else _right_parts(written) if isinstance(written, dict) else {}
    found = []
    for key, message in conflicts(parts):
        path = ("train", *key)
        found.append(Problem(tree.place(path, of_key=True), path, message))
    return found


def _right_parts(train: dict[str, Any]) -> dict[str, Any]:
    parts = {}
    for name in TrainConfig.model_fields:
        if name in train:
            with contextlib.suppress(ValidationError):
                parts[name] = _adapter(name).validate_python(train[name], strict=True)
    return parts


@functools.cache
def _adapter(name: str) -> TypeAdapter[Any]:
    """What checks one setting of `train` by itself.

    It takes milliseconds to make, and a sweep may be wrong at every point.
    """
    info = TrainConfig.model_fields[name]
    return TypeAdapter(Annotated[info.annotation, info])  # type: ignore[arg-type]


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Tree:
    tree = yaml_tree.read(path, _shown(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    place = tree.place(("extends",))
    if not isinstance(base, str):
        raise SpecError(
            [
                Problem(
                    place,
                    ("extends",),
                    f"found {show(base)}; expected the name of a job beside this one",
                )
            ]
        )
    target = beside(path, base)
    chain = (*seen, path.resolve())
    if target.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, target))
        raise SpecError([Problem(place, ("extends",), f"goes in a circle: {names}")])
    if problem := _missing(target, place, ("extends",)):
        raise SpecError([problem])
    under = _with_bases(target, chain)
    # what was printed of another job was not printed of this one
    under.value.pop("published", None)
    return yaml_tree.merge(under, tree)


def _shown(path: Path) -> str:
    """As the person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
