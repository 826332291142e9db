"""What a person reads who wrote something wrong: pydantic's errors with their places in the file
and what to try.
"""

from __future__ import annotations

import difflib
import re
import types
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from launch.spec.yaml_tree import MAX_SHOWN, Path_, Problem, Tree

M = TypeVar("M", bound=BaseModel)
LONGEST = 200  # characters of a value that are shown

# Words that people bring from other tools, and ours.
SYNONYMS = {
    "learning_rate": "lr",
    "wd": "weight_decay",
    "l2": "weight_decay",
    "batch_size": "global_batch_size",
    "bs": "global_batch_size",
    "num_epochs": "epochs",
    "max_epochs": "epochs",
    "gpus": "gpus_per_node",
    "num_gpus": "gpus_per_node",
    "num_nodes": "nodes",
    "cpus": "cpus_per_task",
    "num_cpus": "cpus_per_task",
    "memory_gb": "mem_gb",
    "memory": "mem_gb",
    "mem": "mem_gb",
    "time": "timeout_min",
    "time_min": "timeout_min",
    "walltime": "timeout_min",
    "nproc": "nproc_per_node",
    "ranks": "nproc_per_node",
    "tasks_per_node": "nproc_per_node",
    "optim": "optimizer",
    "scheduler": "schedule",
    "dataset": "data",
    "network": "model",
    "threads": "threads_per_rank",
    "wandb": "tracking",
    "docker": "container",
    "dtype": "precision",
    "warmup": "warmup_epochs",
    "patience": "patience_evaluations",
    "ema": "ema_decay",
    "num_workers": "workers",
    "amp": "precision",
    "val": "validation",
    "val_fraction": "validation",
    "val_folder": "validation_folder",
    "min": "low",
    "max": "high",
    "pruner": "halving",
}
OTHER_VALUES = {
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float32": "fp32",
    "single": "fp32",
    "fp64": "fp32",
    "float64": "fp32",
    "cifar": "cifar10",
    "fashionmnist": "fashion_mnist",
    "onecycle": "one_cycle",
    "multi_step": "multistep",
    "none": "constant",
}


def validate(
    model: type[M], tree: Tree, also_known: tuple[str, ...] = ()
) -> tuple[M | None, list[Problem]]:
    """The model made from the tree, and what is wrong with the tree. also_known: keys at the top
    that are taken out before.
    """
    try:
        return model.model_validate(tree.value), []
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(model, tree, dict(e), also_known) for e in found[:MAX_SHOWN]]
        # which are counted alone
        problems += [Problem(tree.place(e["loc"]), e["loc"], e["msg"]) for e in found[MAX_SHOWN:]]
    misspelt = {(*p.path[:-1], m[1]) for p in problems if (m := _SUGGESTED.match(p.message))}
    # a required key that was misspelt is one mistake, not two
    return None, [
        p for p in problems if not (p.message.startswith("is missing") and p.path in misspelt)
    ]


_SUGGESTED = re.compile(r"unknown key; did you mean '(\w+)'\?")


def _problem(
    model: type[BaseModel], tree: Tree, error: dict[str, Any], also_known: tuple[str, ...]
) -> Problem:
    kind = error["type"]
    if kind == "union_tag_not_found" and not isinstance(error["input"], dict):  # `model: mlp`
        kind = "model_type"
    path, parent = _walk(model, tree.value, error["loc"])

    if kind == "extra_forbidden":
        unknown = _unknown_key(path, parent, model, also_known)
        return Problem(tree.place(path, of_key=True), path, unknown)
    if kind == "missing":
        wanted = _describe(parent.model_fields[str(path[-1])]) if parent else ""
        return Problem(tree.place(path[:-1], of_key=True), path, f"is missing{wanted}")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _problem_of_name(model, tree, path, error)
    if kind == "value_error":
        return Problem(tree.place(path, of_key=True), path, str(error["ctx"]["error"]))
    if kind == "literal_error":
        return Problem(tree.place(path), path, _not_one_of(error))

    field = parent.model_fields.get(str(path[-1])) if parent else None
    # of a list, its length is what is wrong
    found = "" if kind in ("too_short", "too_long") else f"found {show(error['input'])}; "
    return Problem(tree.place(path), path, found + _expected(model, path, kind, error, field))


def _problem_of_name(
    model: type[BaseModel], tree: Tree, path: Path_, error: dict[str, Any]
) -> Problem:
    """A `name` that chooses a kind of model, data or the like: missing or unknown."""
    context = error.get("ctx", {})
    tags = re.findall(r"'([^']+)'", str(context.get("expected_tags", ""))) or _tags(model, path)
    of_name = (*path, "name")
    if error["type"] == "union_tag_not_found":
        missing = f"is missing; one of: {', '.join(tags)}"
        return Problem(tree.place(path, of_key=True), of_name, missing)
    tag = str(context["tag"])
    unknown = f"found {show(tag)}; expected one of: {', '.join(tags)}{_near(tag, tags)}"
    return Problem(tree.place(of_name), of_name, unknown)


def _not_one_of(error: dict[str, Any]) -> str:
    """A value that is none of those that a setting takes."""
    expected = re.findall(r"'([^']+)'", error["ctx"]["expected"])
    one_of = "one of: " if len(expected) > 1 else ""
    names = ", ".join(expected) or error["ctx"]["expected"]
    near = _near(str(error["input"]), expected)
    return f"found {show(error['input'])}; expected {one_of}{names}{near}"


def _expected(
    model: type[BaseModel],
    path: Path_,
    kind: str,
    error: dict[str, Any],
    field: FieldInfo | None,
) -> str:
    """What a value should be."""
    expected = str(_EXPECTED.get(kind, error["msg"])).format(**error.get("ctx", {}))
    tags = _tags(model, path) if kind.startswith("model_") else []
    if tags:  # `optimizer: adam`
        guess = str(error["input"])
        expected += f", as in {{name: {guess if guess in tags else tags[0]}}}"
    if kind in ("int_type", "int_from_float", "float_type") and field and field.description:
        expected += f" ({field.description})"  # its unit, say
    return expected


_EXPECTED = {
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "string_type": "expected a text (quote it if it is one)",
    "list_type": "expected a list, as in [1, 2]",
    "dict_type": "expected a mapping",
    "model_type": "expected a mapping of settings",
    "model_attributes_type": "expected a mapping of settings",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected {ge:g} or more",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected {le:g} or less",
    "finite_number": "expected a finite number",
    "too_short": "found {actual_length} item(s); expected at least {min_length}",
    "too_long": "found {actual_length} item(s); expected at most {max_length}",
    "string_too_short": "expected a text that is not empty",
}


def _walk(
    model: type[BaseModel], value: Any, loc: tuple[str | int, ...]
) -> tuple[Path_, type[BaseModel] | None]:
    """pydantic's location without the tags of unions, and the model that holds its last key."""
    path: list[str | int] = []
    current: Any = model
    holder: type[BaseModel] | None = model
    for step in loc:
        members = {_tag(m): m for m in _models(current)}
        if len(members) > 1 and step in members and step != "name":
            current = members[str(step)]
            continue
        if isinstance(step, str) and _is_plain_union(current):
            continue
        path.append(step)
        single = next(iter(_models(current)), None)
        holder = single
        if single is not None and step in single.model_fields:
            current = single.model_fields[str(step)]
            current = (
                Annotated[current.annotation, *current.metadata]
                if current.metadata
                else current.annotation
            )
        else:
            current = _inside(current, step)
    return tuple(path), holder


def _is_plain_union(annotation: Any) -> bool:
    """Whether it is a union of kinds without keys, as float | list[float]: a text in a location is
    then pydantic's name of the kind.
    """
    if get_origin(annotation) is Annotated:
        return _is_plain_union(get_args(annotation)[0])
    if get_origin(annotation) not in (Union, types.UnionType):
        return False
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    has_keys = any(get_origin(kind) is dict or _models(kind) for kind in kinds)
    return len(kinds) > 1 and not has_keys


def _inside(annotation: Any, step: str | int) -> Any:
    """What the items of a list are, or the values of a map with free keys."""
    if get_origin(annotation) is Annotated:
        return _inside(get_args(annotation)[0], step)
    if get_origin(annotation) in (Union, types.UnionType):
        return next(
            (found for a in get_args(annotation) if (found := _inside(a, step)) is not None), None
        )
    kind = list if isinstance(step, int) else dict
    return get_args(annotation)[-1] if get_origin(annotation) is kind else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is Annotated:
        return _models(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [m for a in get_args(annotation) for m in _models(a)]
    return []


def _tag(model: type[BaseModel]) -> str | None:
    """What tells a model apart from the others of its union: its name, or the family of names that
    it stands for.
    """
    name = model.model_fields.get("name")
    if family := getattr(model, "FAMILY", None):
        return str(family)
    return (
        str(get_args(name.annotation)[0])
        if name and get_origin(name.annotation) is Literal
        else None
    )


def _tags(model: type[BaseModel], path: Path_) -> list[str]:
    current: Any = model
    for step in path:
        single = next((m for m in _models(current) if str(step) in m.model_fields), None)
        current = single.model_fields[str(step)].annotation if single else _inside(current, step)
    return [tag for m in _models(current) if (tag := _tag(m))]


def _unknown_key(
    path: Path_, parent: type[BaseModel] | None, root: type[BaseModel], also_known: tuple[str, ...]
) -> str:
    key = str(path[-1])
    # `name` chooses: it stands first
    known = sorted(parent.model_fields, key=lambda name: name != "name") if parent else []
    if parent is root:
        known += also_known
    near = SYNONYMS.get(key)
    if near not in known:
        elsewhere = _elsewhere(key, ".".join(map(str, path)), root)
        words = known + [word for word, ours in SYNONYMS.items() if ours in known]
        close = difflib.get_close_matches(key.lower(), words, 1) if not elsewhere else []
        near = SYNONYMS.get(close[0], close[0]) if close else None
        hint = f"; did you mean '{near}'?" if near else elsewhere or ";"
    else:
        hint = f"; did you mean '{near}'?"
    return f"unknown key{hint} known: {', '.join(known)}"


def _elsewhere(key: str, path: str, root: type[BaseModel]) -> str:
    """Where just this key does exist: in another part of the spec, or in the same place under
    another `name`.
    """

    def search(annotation: Any, path: str) -> list[tuple[str, str | None]]:
        found = []
        for model in _models(annotation):
            for name, info in model.model_fields.items():
                here = f"{path}.{name}" if path else name
                if name == SYNONYMS.get(key, key) and path:
                    found.append((here, _tag(model)))
                found += search(info.annotation, here)
        return found

    places = search(root, "")
    for place, tag in places:
        if place == path:
            return f"; it is a setting of {tag};"
    return f"; did you mean '{places[0][0]}'?" if places else ""


def _near(word: str, known: list[str]) -> str:
    lower = OTHER_VALUES.get(word.lower(), word.lower())
    close = (
        difflib.get_close_matches(lower, known, 1)
        or sorted((k for k in known if k in lower or lower in k), key=len)[-1:]
    )
    return f"; did you mean '{close[0]}'?" if close else ""


def _describe(field: Any) -> str:
    models = _models(field.annotation)
    if models:
        tags = [tag for m in models if (tag := _tag(m))]
        return (
            f"; expected a mapping with name: {' or '.join(tags)}"
            if tags
            else "; expected a mapping"
        )
    if get_origin(field.annotation) is Literal:
        return f"; one of: {', '.join(map(str, get_args(field.annotation)))}"
    return f"; {field.description}" if field.description else ""


def show(value: Any) -> str:
    """A value as the person wrote it, in a few words."""
    if isinstance(value, BaseModel | dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return (
            f"{value!r}"
            if len(value) <= LONGEST
            else f"{value[:LONGEST]!r} and {len(value) - LONGEST:,} characters more"
        )
    return str(value)
