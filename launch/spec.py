"""A job file becomes a JobSpec: bases and overrides merged, every mistake found with its place. Knows YAML, no cluster."""

from __future__ import annotations

import difflib
import re
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError

from launch import yaml_tree
from launch.yaml_tree import Path_, Place, Problem, SpecError, Tree
from trainer.config.run import Execution, Strict, Tracking, TrainConfig

M = TypeVar("M", bound=BaseModel)

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


# Words that people bring from other tools, and ours.
SYNONYMS = {
    "learning_rate": "lr", "wd": "weight_decay", "l2": "weight_decay",
    "batch_size": "global_batch_size", "bs": "global_batch_size",
    "num_epochs": "epochs", "max_epochs": "epochs", "gpus": "gpus_per_node", "num_gpus": "gpus_per_node", "num_nodes": "nodes",
    "cpus": "cpus_per_task", "num_cpus": "cpus_per_task", "memory_gb": "mem_gb", "memory": "mem_gb", "mem": "mem_gb",
    "time": "timeout_min", "time_min": "timeout_min", "walltime": "timeout_min",
    "nproc": "nproc_per_node", "ranks": "nproc_per_node",
    "tasks_per_node": "nproc_per_node", "optim": "optimizer", "scheduler": "schedule", "dataset": "data", "network": "model",
    "threads": "threads_per_rank", "wandb": "tracking", "docker": "container", "dtype": "precision", "warmup": "warmup_epochs",
}  # fmt: skip


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
        problems.append(Problem(tree.place(("fallback",)), ("fallback",), f"found {_show(fallback.value)}; expected a mapping"))
    specs: list[JobSpec | None] = []
    for variant in variants:
        for overlay in overlays:
            variant = yaml_tree.merge(variant, overlay)
        spec, found = validate(JobSpec, variant)
        specs.append(spec)
        problems += [p for p in found if p not in problems]
    if problems:
        raise SpecError(sorted(problems, key=lambda p: (p.place.source, p.place.line or 0, p.place.column or 0)))
    chosen = specs[-1] if without_gpu else specs[0]
    assert chosen is not None
    return chosen


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Tree:
    tree = yaml_tree.read(path, _shown(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    place = tree.place(("extends",))
    if not isinstance(base, str):
        raise SpecError([Problem(place, ("extends",), f"found {_show(base)}; expected the name of a job beside this one")])
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


def validate(model: type[M], tree: Tree) -> tuple[M | None, list[Problem]]:
    """The model made from the tree, and what is wrong with the tree."""
    try:
        return model.model_validate(tree.value), []
    except ValidationError as error:
        problems = [_problem(model, tree, dict(e)) for e in error.errors()]
    misspelt = {(*p.path[:-1], m[1]) for p in problems if (m := _SUGGESTED.match(p.message))}
    # a required key that was misspelt is one mistake, not two
    return None, [p for p in problems if not (p.message.startswith("is missing") and p.path in misspelt)]


_SUGGESTED = re.compile(r"unknown key; did you mean '(\w+)'\?")


def _problem(model: type[BaseModel], tree: Tree, error: dict[str, Any]) -> Problem:
    kind, context = error["type"], error.get("ctx", {})
    path, parent = _walk(model, tree.value, error["loc"])
    found = f"found {_show(error['input'])}; "
    if kind == "extra_forbidden":
        return Problem(tree.place(path, of_key=True), path, _unknown_key(path, parent))
    if kind == "missing":
        wanted = _describe(parent.model_fields[str(path[-1])]) if parent else ""
        return Problem(tree.place(path[:-1], of_key=True), path, f"is missing{wanted}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = re.findall(r"'([^']+)'", str(context.get("expected_tags", ""))) or _tags(model, path)
        path = (*path, "name")
        if kind == "union_tag_not_found":
            return Problem(tree.place(path[:-1], of_key=True), path, f"is missing; one of: {', '.join(tags)}")
        tag = str(context["tag"])
        return Problem(tree.place(path), path, f"found {_show(tag)}; expected one of: {', '.join(tags)}{_near(tag, tags)}")
    if kind == "literal_error":
        expected = re.findall(r"'([^']+)'", context["expected"])
        near = _near(str(error["input"]), expected)
        return Problem(tree.place(path), path, f"{found}expected {'one of: ' if len(expected) > 1 else ''}"
                       + (", ".join(expected) or context["expected"]) + near)
    if kind == "value_error":
        return Problem(tree.place(path, of_key=True), path, str(context["error"]))
    return Problem(tree.place(path), path, found + _EXPECTED.get(kind, error["msg"]).format(**context))


_EXPECTED = {
    "int_type": "expected a whole number", "int_from_float": "expected a whole number", "float_type": "expected a number",
    "bool_type": "expected true or false", "string_type": "expected a text (quote it if it is one)",
    "list_type": "expected a list, as in [1, 2]", "dict_type": "expected a mapping", "model_type": "expected a mapping of settings",
    "model_attributes_type": "expected a mapping of settings", "greater_than": "expected more than {gt}",
    "greater_than_equal": "expected {ge} or more", "less_than": "expected less than {lt}",
    "less_than_equal": "expected {le} or less", "finite_number": "expected a finite number",
    "too_short": "expected at least {min_length} item(s)", "string_too_short": "expected a text that is not empty",
}  # fmt: skip


def _walk(model: type[BaseModel], value: Any, loc: tuple[str | int, ...]) -> tuple[Path_, type[BaseModel] | None]:
    """pydantic's location without the tags of unions, and the model that holds its last key."""
    path: list[str | int] = []
    current: Any = model
    holder: type[BaseModel] | None = model
    for step in loc:
        members = {_tag(m): m for m in _models(current)}
        if len(members) > 1 and step in members and step != "name":
            current = members[str(step)]
            continue
        path.append(step)
        single = next(iter(_models(current)), None)
        holder = single
        if single is not None and step in single.model_fields:
            current = single.model_fields[str(step)]
            current = Annotated[current.annotation, *current.metadata] if current.metadata else current.annotation
        elif isinstance(step, int):
            current = (get_args(current) or (None,))[0]
    return tuple(path), holder


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _models(a)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    name = model.model_fields.get("name")
    return str(get_args(name.annotation)[0]) if name and get_origin(name.annotation) is Literal else None


def _tags(model: type[BaseModel], path: Path_) -> list[str]:
    current: Any = model
    for step in path:
        single = next(iter(_models(current)), None)
        current = single.model_fields[str(step)].annotation if single else None
    return [tag for m in _models(current) if (tag := _tag(m))]


def _unknown_key(path: Path_, parent: type[BaseModel] | None) -> str:
    key = str(path[-1])
    known = sorted(parent.model_fields, key=lambda name: name != "name") if parent else []  # `name` chooses: it stands first
    if parent is JobSpec:
        known += ["extends", "fallback"]
    near = SYNONYMS.get(key)
    if near not in known:
        words = known + [word for word, ours in SYNONYMS.items() if ours in known]
        close = difflib.get_close_matches(key, words, 1)
        near = SYNONYMS.get(close[0], close[0]) if close else None
    hint = f"; did you mean '{near}'?" if near else _elsewhere(key, ".".join(map(str, path)))
    return f"unknown key{hint} known: {', '.join(known)}"


def _elsewhere(key: str, path: str) -> str:
    """Where a key does exist: in another part of the spec, or in the same place under another `name`."""

    def search(annotation: Any, path: str) -> list[tuple[str, str | None]]:
        found = []
        for model in _models(annotation):
            for name, info in model.model_fields.items():
                here = f"{path}.{name}" if path else name
                if name == SYNONYMS.get(key, key) and path:
                    found.append((here, _tag(model)))
                found += search(info.annotation, here)
        return found

    places = search(JobSpec, "")
    for place, tag in places:
        if place == path:
            return f"; it is a setting of {tag};"
    return f"; did you mean '{places[0][0]}'?" if places else ";"


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _describe(field: Any) -> str:
    models = _models(field.annotation)
    if models:
        tags = [tag for m in models if (tag := _tag(m))]
        return f"; expected a mapping with name: {' or '.join(tags)}" if tags else "; expected a mapping"
    if get_origin(field.annotation) is Literal:
        return f"; one of: {', '.join(map(str, get_args(field.annotation)))}"
    return f"; {field.description}" if field.description else ""


def _show(value: Any) -> str:
    if isinstance(value, BaseModel | dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value!r}" if isinstance(value, str) else str(value)
