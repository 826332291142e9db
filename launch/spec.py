"""A job file becomes a JobSpec: bases and overrides merged, every mistake found with its place. Knows YAML, no cluster."""

from __future__ import annotations

import contextlib
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from launch import yaml_tree
from launch.mistakes import show, validate
from launch.yaml_tree import Place, Problem, SpecError, Tree
from trainer.config.conflicts import conflicts
from trainer.config.run import Execution, Tracking, TrainConfig
from trainer.config.strict import Strict

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}$")  # legal for docker, Slurm and wandb


class Resources(Strict):
    """What the job asks for, in submitit's words. One Slurm task a node; torchrun starts the ranks in it."""

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    nproc_per_node: int | None = Field(None, ge=1, description="ranks a node; null: one a GPU, one without GPUs")
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of the node's one task, shared by its ranks")
    mem_gb: float | None = Field(None, gt=0, description="of a node")
    timeout_min: int = Field(60, ge=1, description="the time limit of one attempt, in minutes")

    def ranks_per_node(self) -> int:
        return self.nproc_per_node or max(1, self.gpus_per_node)


class Container(Strict):
    """The image of the docker backend."""

    image: str | None = Field(None, min_length=1, description="null: the site's, else batchyard:cpu or batchyard:cuda")


class JobSpec(Strict):
    """A whole job, after `extends`, `fallback` and `--set`."""

    description: str | None = None
    train: TrainConfig
    execution: Execution = Execution()
    resources: Resources = Resources()
    container: Container = Container()
    tracking: Tracking = Tracking()


@dataclass(frozen=True)
class Job:
    """A job's name and its file."""

    name: str
    path: Path


def find(job: str, project: Path) -> Job:
    """JOB is a name in the project's jobs/ or a path to a YAML file. Raises SpecError with the nearest names."""
    if job.endswith((".yaml", ".yml")) or "/" in job:
        path, name = Path(job), Path(job).stem
    else:
        path, name = project / "jobs" / f"{job}.yaml", job
    if not path.is_file():
        known = [j.name for j in find_all(project)]
        near = difflib.get_close_matches(name, known, 1)
        raise SpecError([Problem(Place(job), (), "no such job" + (f"; did you mean '{near[0]}'?" if near else "")
                                 + f" known: {', '.join(known) or 'none'}; or give a path to a .yaml file")])
    if not NAME.match(name):
        raise SpecError([Problem(Place(str(path)), (), f"a job's name matches {NAME.pattern[:-1]}, this one is {name!r}")])
    return Job(name, path)


def find_all(project: Path) -> list[Job]:
    """Every job of the project, by name."""
    return [Job(p.stem, p) for p in sorted((project / "jobs").glob("*.yaml"))]


def load(job: Job, settings: tuple[str, ...] = (), *, without_gpu: bool) -> JobSpec:
    """`extends` < the file < `fallback` (where the chosen place has no GPU) < `--set`. Raises SpecError with every mistake.

    The spec is checked with and without its fallback, so that a mistake in it is found wherever the job is checked.
    """
    tree = _with_bases(job.path, ())
    overlays, problems = [], []
    for option in settings:
        try:
            overlays.append(yaml_tree.setting(option))
        except SpecError as error:
            problems += error.problems
    fallback = Tree(tree.value.pop("fallback", None))
    for own, theirs in ((fallback.keys, tree.keys), (fallback.values, tree.values)):
        own.update({path[1:]: place for path, place in theirs.items() if path[:1] == ("fallback",)})
    variants = [tree]
    if isinstance(fallback.value, dict):
        variants.append(yaml_tree.merge(tree, fallback))
    elif ("fallback",) in tree.keys and fallback.value is not None:
        problems.append(Problem(tree.place(("fallback",)), ("fallback",), f"found {show(fallback.value)}; expected a mapping"))
    specs: list[JobSpec | None] = []
    for variant in variants:
        for overlay in overlays:
            variant = yaml_tree.merge(variant, overlay)
        spec, found = validate(JobSpec, variant, ("extends", "fallback"))
        found += _conflicts(spec, variant)
        specs.append(spec)
        problems += [p for p in found if p not in problems]
    if problems:
        problems = list(dict.fromkeys(problems))
        raise SpecError(sorted(problems, key=lambda p: (p.place.source, p.place.line or 0, p.place.column or 0)))
    chosen = specs[-1] if without_gpu else specs[0]
    assert chosen is not None
    return chosen


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
    for name, info in TrainConfig.model_fields.items():
        if name in train:
            with contextlib.suppress(ValidationError):
                adapter = TypeAdapter[Any](Annotated[info.annotation, info])  # type: ignore[arg-type]
                parts[name] = adapter.validate_python(train[name], strict=True)
    return parts


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Tree:
    tree = yaml_tree.read(path, _shown(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    place = tree.place(("extends",))
    if not isinstance(base, str):
        raise SpecError([Problem(place, ("extends",), f"found {show(base)}; expected the name of a job beside this one")])
    target = path.parent / (base if base.endswith((".yaml", ".yml")) else f"{base}.yaml")
    chain = (*seen, path.resolve())
    if target.resolve() in chain:
        names = " -> ".join(p.name for p in (*chain, target))
        raise SpecError([Problem(place, ("extends",), f"goes in a circle: {names}")])
    if not target.is_file():
        near = difflib.get_close_matches(target.stem, [p.stem for p in path.parent.glob("*.yaml")], 1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise SpecError([Problem(place, ("extends",), f"there is no {_shown(target)}{hint}")])
    return yaml_tree.merge(_with_bases(target, chain), tree)


def _shown(path: Path) -> str:
    """As the person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
