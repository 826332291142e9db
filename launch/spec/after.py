"""`after`, and weights of another job: what must be completed first, without a circle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.spec.bases import beside, missing, with_bases
from launch.spec.messages import show
from launch.spec.yaml_tree import Path_, Problem, Tree


def after_problems(path: Path, tree: Tree) -> list[Problem]:
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
        if problem := missing(target, place, of):
            return [problem]
        if target.resolve() in chain:
            names = " -> ".join(p.name for p in (*chain, target))
            return [Problem(place, of, f"goes in a circle: {names}")]
        chain.append(target.resolve())
        before = with_bases(target, ()).value
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
