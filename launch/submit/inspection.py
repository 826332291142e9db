"""What a job's model and data are before anything is submitted: asked of trainer.tools.inspect, in
the Python that would train.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from launch.environment import Machine
from launch.errors import SubmitError
from launch.spec import load
from launch.spec.job import JobSpec
from launch.submit import tools
from launch.submit.request import Request
from launch.words import plural


@dataclass(frozen=True)
class Found:
    """What trainer.tools.inspect found. said: what it told a person on the way, as of files that
    differ from their checksums.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    said: str

    @property
    def problem(self) -> str | None:
        """What is wrong with the data, and where to put it; None: they are there."""
        problem: str | None = self.data.get("problem")
        return problem


def inspect(request: Request, job: JobSpec, machine: Machine) -> Found:
    """The model and the data of a job.

    Raises SubmitError where the model does not fit its pictures, or Python has no torch.
    """
    result = tools.ask_of_job(
        request, job, machine, "inspect", "--data-dir", str(request.folders.data)
    )
    return Found(**json.loads(result.stdout), said=result.stderr.strip())


@dataclass(frozen=True)
class Look:
    """Points of a job that are one to the deep check: equal but for what it does not look at.
    point: the first of them, empty where the job has no sweep; fallback: None where it does not
    change what is trained.
    """

    point: str
    own: JobSpec
    fallback: JobSpec | None


def looks(request: Request) -> tuple[list[Look], str]:
    """What the deep check looks at, and of how many points; of a search, of the probes that it is
    checked by. Raises SpecError.
    """
    own, fallback = (
        load.load_points(request.job, request.settings, without_gpu=without_gpu)
        for without_gpu in (False, True)
    )
    found: dict[str, Look] = {}
    for point, job, without in zip(own.points, own.specs, fallback.specs, strict=True):
        seen = repr(
            [
                (
                    train.model,
                    train.data,
                    train.global_batch_size,
                    train.micro_batch_size,
                    train.precision,
                    train.copies_kept(),
                )
                for train in (job.train, without.train)
            ]
        )
        found.setdefault(
            seen, Look(str(point), job, without if without.train != job.train else None)
        )
    told = plural(len(own.points), "probe" if own.search else "point") if own.is_sweep else ""
    return list(found.values()), told


def deep(request: Request, machine: Machine) -> tuple[list[str], bool]:
    """What the deep check of a job says, a line a finding, and whether its data are there, or those
    of its stand-in.

    The stand-in is what the job's fallback trains on instead. Raises SpecError, and SubmitError of
    every look that found a mistake.
    """
    found, points = looks(request)
    many_data = len({repr(look.own.train.data) for look in found}) > 1
    lines, wrong, there = [], dict[str, list[str]](), True
    for look in found:
        at = f"{look.point}: " if len(found) > 1 else ""
        try:
            of_look, of_look_there = _look(request, look, machine, at, at if many_data else "")
        except SubmitError as error:
            wrong.setdefault(str(error), []).append(look.point)
            continue
        lines += of_look
        there = there and of_look_there
    if wrong:
        told = [
            f"{_points(whose)}{error}" if len(found) > 1 else error
            for error, whose in wrong.items()
        ]
        raise SubmitError("\n".join([*dict.fromkeys(lines), *told]))
    if points:
        lines.append(
            f"looked {plural(len(found), 'time')} for {points}: once for all of the same model,"
            " data, batch and memory"
        )
    return list(dict.fromkeys(lines)), there


def _points(some: list[str]) -> str:
    """Whose a mistake is, before it."""
    return f"{some[0]}: " if len(some) == 1 else f"{some[0]} and {len(some) - 1} more: "


def _look(
    request: Request, look: Look, machine: Machine, at: str, at_data: str
) -> tuple[list[str], bool]:
    """As `deep`, of one look. at, at_data: what goes before a line of the model, and of
    the data.
    """
    own, fallback = look.own, look.fallback
    found = inspect(request, own, machine)
    lines = [f"{at}{model_line(found)}", *data_lines(found, at_data)]
    if fallback is None:
        return lines, found.problem is None
    other = inspect(request, fallback, machine)
    lines.append(f"{at}fallback {model_line(other)}")
    if found.problem is None or fallback.train.data == own.train.data:
        return lines, found.problem is None
    if names(own) == names(fallback):  # another form or a cut of the same data
        return lines, False
    lines += data_lines(other, f"{at_data}stand-in ")
    return lines, other.problem is None


def names(job: JobSpec) -> tuple[str, Any]:
    """Which data set a job trains on."""
    data = job.train.data
    return data.name, getattr(data, "folder", None)


def model_line(found: Found) -> str:
    """The model in a line."""
    model = found.model
    size = "x".join(map(str, model["input"]))
    classes = f"{model['classes']} classes" + (
        "" if model["classes_known"] else " (taken for so many)"
    )
    return (
        f"model: {model['name']} on {size}, {classes}: {model['parameters']:,} parameters, "
        f"{amount(model['flops'])}FLOPs a picture, "
        f"about {amount(model['memory_bytes'])}B a rank at {model['micro_batch_size']} pictures"
    )


def data_lines(found: Found, at: str = "") -> list[str]:
    """The data in a line, and what was said of them. at: what goes before it."""
    data = found.data
    if found.problem is not None:
        return [
            f"{at}data: {data['name']} is not there or not right:",
            *(f"  {line}" for line in found.problem.splitlines()),
        ]
    said = [
        f"  a stand-in: {line}"
        for line in found.said.splitlines()
        if "differ from the published" in line
    ]
    notes = [f"  {note}" for note in data.get("notes", ())]
    return [f"{at}data: {data['name']}, {len(data['classes'])} classes", *said, *notes]


def amount(number: float) -> str:
    """A number in three digits with the SI prefix that goes before its unit."""
    for prefix, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {prefix}"
    return f"{number:.3g} "
