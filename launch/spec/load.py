"""A job file becomes a JobSpec: bases and overrides merged, every mistake found with its place.

Knows YAML, no cluster.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from pathlib import Path
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from launch import environment
from launch.spec import published as publishing
from launch.spec import sweep as sweeping
from launch.spec import yaml_tree
from launch.spec.after import after_problems
from launch.spec.bases import shown, with_bases
from launch.spec.job import NAME, Job, JobSpec, Loaded
from launch.spec.messages import show, validate
from launch.spec.sweep import Point, Sweep
from launch.spec.yaml_tree import Place, Problem, SpecError, Tree
from trainer.config.conflicts import conflicts
from trainer.config.run import TrainConfig

ALSO_KNOWN = ("extends", "fallback")


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
        with_bases(job.path, ()) if job.text is None else yaml_tree.parse(job.text, shown(job.path))
    )
    overlays, problems = [], []
    for option in settings:
        try:
            overlays.append(yaml_tree.setting(option))
        except SpecError as error:
            problems += error.problems
    fallback, found = _fallback(tree)
    problems += found + after_problems(job.path, tree)
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
