"""YAML with places: YAML 1.2 scalars, every key and value with its file, line and column; duplicate
keys are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launch.errors import Wrong
from launch.text import plain

Path_ = tuple[str | int, ...]
MAX_VALUES = 100_000  # of one file, each alias counted as what it stands for
MAX_DEPTH = 50
MAX_SHOWN = 50  # mistakes
MAX_DIGITS = 400  # of a number


@dataclass(frozen=True)
class Place:
    """Where a person wrote something: a file with line and column (1 is the first), or a `--set`
    option.
    """

    source: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One mistake of a person's: where, at which key, what was found and expected, what to try."""

    place: Place
    path: Path_
    message: str

    def __str__(self) -> str:
        key = plain(".".join(map(str, self.path)))
        where = plain(self.place)
        return f"{where}: {key}: {self.message}" if key else f"{where}: {self.message}"


class SpecError(Wrong):
    """All mistakes at once."""

    def __init__(self, problems: list[Problem]) -> None:
        shown = [str(problem) for problem in problems[:MAX_SHOWN]]
        if len(problems) > MAX_SHOWN:
            shown.append(f"and {len(problems) - MAX_SHOWN:,} more mistakes")
        super().__init__("\n".join(shown))
        self.problems = problems

    def told(self) -> str:
        return str(self)  # each line says where


@dataclass
class Tree:
    """A plain value (dicts, lists, scalars) and the places of its keys and values by their path."""

    value: Any
    keys: dict[Path_, Place] = field(default_factory=dict)
    values: dict[Path_, Place] = field(default_factory=dict)

    def place(self, path: Path_, *, of_key: bool = False) -> Place:
        """The place of `path`, or of the nearest thing around it that somebody wrote."""
        places = (self.keys, self.values) if of_key else (self.values, self.keys)
        for end in range(len(path), -1, -1):
            for found in places:
                if path[:end] in found:
                    return found[path[:end]]
        raise AssertionError("the root has a place")


_SCALARS: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(r"(?:~|null|Null|NULL|)$"), lambda s: None),
    (re.compile(r"(?:true|True|TRUE)$"), lambda s: True),
    (re.compile(r"(?:false|False|FALSE)$"), lambda s: False),
    (re.compile(r"[-+]?[0-9]+$"), int),
    (re.compile(r"0o[0-7]+$"), lambda s: int(s[2:], 8)),
    (re.compile(r"0x[0-9a-fA-F]+$"), lambda s: int(s[2:], 16)),
    (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), float),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF)$"), lambda s: float(s.replace(".", "", 1))),
    (re.compile(r"\.(?:nan|NaN|NAN)$"), lambda s: float("nan")),
]


def scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema: `1e-3` is a float; `on`, `no` and `12:30` are
    strings.
    """
    for pattern, make in _SCALARS if len(text) <= MAX_DIGITS else ():
        if pattern.match(text):
            return make(text)
    return text


def read(path: Path, shown_as: str | None = None) -> Tree:
    """Reads a mapping from a YAML file. Raises SpecError."""
    source = shown_as or str(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError([Problem(Place(source), (), f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        raise SpecError(
            [Problem(Place(source), (), f"is not UTF-8: {error.reason} at byte {error.start}")]
        ) from None
    return parse(text, source)


def parse(text: str, source: str) -> Tree:
    """Reads a mapping from YAML text.

    Raises SpecError with every duplicate key and every odd key at once.
    """
    try:
        root = _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Place(source, mark.line + 1, mark.column + 1) if mark else Place(source)
        said = f"is not YAML: {error.problem}" + (f", {error.context}" if error.context else "")
        raise SpecError([Problem(place, (), said)]) from None
    except yaml.YAMLError as error:
        raise SpecError([Problem(Place(source), (), f"is not YAML: {error}")]) from None
    tree = Tree({})
    problems: list[Problem] = []
    tree.values[()] = Place(source, 1, 1)
    if root is not None:
        if not isinstance(root, yaml.MappingNode):
            raise SpecError(
                [
                    Problem(
                        Place(source, 1, 1),
                        (),
                        "expected a mapping (`key: value` lines) at the top",
                    )
                ]
            )
        try:
            tree.value = _convert(root, (), tree, problems, source, ())
        except TooMuch as error:
            problems.append(error.problem)
    if problems:
        raise SpecError(problems)
    return tree


class TooMuch(Exception):
    """A text that stands for more than a job can be, such as aliases of aliases."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def _compose(text: str) -> yaml.Node | None:
    """The nodes of a YAML text. Raises yaml's errors."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError:
        raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH} levels") from None


def _convert(
    node: yaml.Node,
    path: Path_,
    tree: Tree,
    problems: list[Problem],
    source: str,
    parents: tuple[int, ...],
) -> Any:
    place = Place(source, node.start_mark.line + 1, node.start_mark.column + 1)
    tree.values[path] = place
    if len(tree.values) > MAX_VALUES:
        message = f"makes more than {MAX_VALUES:,} values, each alias counted as what it stands for"
        raise TooMuch(Problem(place, path[:1], message))
    if len(parents) > MAX_DEPTH:
        raise TooMuch(Problem(place, path[:1], f"is nested deeper than {MAX_DEPTH} levels"))
    if id(node) in parents:
        problems.append(Problem(place, path, "an alias that holds itself"))
        return None
    parents = (*parents, id(node))
    if isinstance(node, yaml.SequenceNode):
        return [
            _convert(child, (*path, i), tree, problems, source, parents)
            for i, child in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        return _convert_mapping(node, path, tree, problems, source, parents)
    # a quoted scalar is a string whatever it holds; so is one with a tag of its own
    assert isinstance(node, yaml.ScalarNode)
    return scalar(node.value) if node.style is None and not node.tag.startswith("!") else node.value


def _convert_mapping(
    node: yaml.MappingNode,
    path: Path_,
    tree: Tree,
    problems: list[Problem],
    source: str,
    parents: tuple[int, ...],
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = Place(source, key_node.start_mark.line + 1, key_node.start_mark.column + 1)
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            problems.append(Problem(place, path, "expected a word as the key"))
        elif key == "<<":
            problems.append(
                Problem(
                    place, path, "merge keys are not YAML 1.2; use `extends: OTHER_JOB` at the top"
                )
            )
        elif key in result:
            problems.append(
                Problem(
                    place,
                    (*path, key),
                    f"written twice; the first is in line {tree.keys[(*path, key)].line}",
                )
            )
        else:
            tree.keys[(*path, key)] = place
            result[key] = _convert(value_node, (*path, key), tree, problems, source, parents)
    return result


def merge(base: Tree, over: Tree, at: Path_ = ()) -> Tree:
    """`base` with `over` laid on it, below `at`: maps merge, everything else is replaced; each part
    keeps its own place.
    """
    result = Tree(_copy(base.value), dict(base.keys), dict(base.values))
    _lay(over.value, at, over, result)
    return result


def _lay(value: Any, path: Path_, over: Tree, result: Tree) -> None:
    """Lays a value of `over` on `result` at `path`.

    No closure of `merge`, which would be a cycle and keep thousands of trees.
    """
    target = result.value
    for key in path[:-1]:
        target = target[key]
    if (
        isinstance(value, dict)
        and (not path or isinstance(target.get(path[-1]), dict))
        and _same_kind(value, target.get(path[-1]) if path else {})
    ):
        for key, child in value.items():
            _lay(child, (*path, key), over, result)
    else:
        # else the places end there: a sweep merges thousands of values
        inside = isinstance(target.get(path[-1]), (dict, list))
        for places in (result.keys, result.values):
            for old in [p for p in places if p[: len(path)] == path] if inside else [path]:
                places.pop(old, None)
        target[path[-1]] = _copy(value)
    for own, theirs in ((result.keys, over.keys), (result.values, over.values)):
        own.update({p: v for p, v in theirs.items() if p and p[: len(path)] == path})


def without(tree: Tree, key: str) -> Tree:
    """The tree without a key at its top, and without the places in it."""
    value = {k: v for k, v in tree.value.items() if k != key}
    keys, values = (
        {p: place for p, place in places.items() if p[:1] != (key,)}
        for places in (tree.keys, tree.values)
    )
    return Tree(value, keys, values)


def _same_kind(over: dict[str, Any], base: dict[str, Any]) -> bool:
    """A map with another `name` (another model, say) replaces: the settings of the old one would be
    unknown to the new.
    """
    return "name" not in over or "name" not in base or over["name"] == base["name"]


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value


def setting(option: str) -> Tree:
    """`--set train.optimizer.lr=0.1` as a tree; the value is YAML. Raises SpecError."""
    place = Place(f"--set {option}")
    key, equals, text = option.partition("=")
    top, axis = re.fullmatch(r"(sweep\.grid\.)?(.*)", key, re.DOTALL).groups()  # type: ignore[union-attr]
    parts = ["sweep", "grid", axis] if top else key.split(".")  # a sweep's axes keep their dots
    if not equals or not all(parts):
        raise SpecError(
            [Problem(place, (), "expected KEY.KEY=VALUE, as in train.optimizer.lr=0.1")]
        )
    try:
        node = _compose(text)
    except yaml.YAMLError:
        shown = f"{text[:MAX_DIGITS]!r}"
        raise SpecError(
            [Problem(place, tuple(parts), f"the value {shown} is not YAML; quote it")]
        ) from None
    inner, problems = Tree(None), list[Problem]()
    try:
        value = None if node is None else _convert(node, (), inner, problems, place.source, ())
    except TooMuch as error:
        raise SpecError([Problem(place, tuple(parts), error.problem.message)]) from None
    if problems:
        raise SpecError([Problem(place, tuple(parts), p.message) for p in problems])
    tree = Tree(value)
    for part in reversed(parts):
        tree.value = {part: tree.value}
    for end in range(len(parts) + 1):
        tree.values[tuple(parts[:end])] = place
        if end:
            tree.keys[tuple(parts[:end])] = place
    for path in inner.values:
        tree.values[(*parts, *path)] = tree.keys[(*parts, *path)] = place
    return tree
