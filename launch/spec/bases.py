"""The jobs that a job extends, laid below it."""

from __future__ import annotations

import difflib
from pathlib import Path

from launch.spec import yaml_tree
from launch.spec.messages import show
from launch.spec.yaml_tree import Path_, Place, Problem, SpecError, Tree


def beside(path: Path, name: str) -> Path:
    """The file of a job that another one names."""
    return path.parent / (name if name.endswith((".yaml", ".yml")) else f"{name}.yaml")


def missing(target: Path, place: Place, of: Path_) -> Problem | None:
    if target.is_file():
        return None
    near = difflib.get_close_matches(target.stem, [p.stem for p in target.parent.glob("*.yaml")], 1)
    return Problem(
        place,
        of,
        f"there is no {shown(target)}" + (f"; did you mean '{near[0]}'?" if near else ""),
    )


def with_bases(path: Path, seen: tuple[Path, ...]) -> Tree:
    tree = yaml_tree.read(path, shown(path))
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
    if problem := missing(target, place, ("extends",)):
        raise SpecError([problem])
    under = with_bases(target, chain)
    # what was printed of another job was not printed of this one
    under.value.pop("published", None)
    return yaml_tree.merge(under, tree)


def shown(path: Path) -> str:
    """As the person would type it from here."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
