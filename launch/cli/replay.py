"""replay: the step that was not finite, once more, by the run's own Python and code; what came up
first, in words.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from launch.cli import options
from launch.cli.options import RunOptions
from launch.submit import tools
from launch.text import echo
from trainer.config.files.outcome import EXIT_FAILED

SHOWN = 8
CALMER = (
    "lower train.optimizer.lr, lengthen train.schedule.warmup_epochs, or set train.clip_grad_norm;"
    " the rows of metrics.jsonl before it show how it came"
)


@click.command("replay")
@options.for_runs
@options.trust
@click.argument("run")
def replay_(**given: Any) -> None:
    """Run the step at which RUN's numbers were no longer finite once more, and name the first layer
    and the samples.

    Exit code 1 where all is finite this time.
    """
    found, used = RunOptions(**given).find()
    told = json.loads(
        tools.tool(found, tools.python_of(found, used), "replay", needs="torch").stdout
    )
    for line in lines(told):
        echo(line)
    sys.exit(0 if told["first"] else EXIT_FAILED)


def lines(told: dict[str, Any]) -> list[str]:
    """What trainer.tools.replay found, for a person."""
    other = (
        ""
        if told["device"] == told["trained_on"]
        else f", where it was trained on {told['trained_on']}"
    )
    begin = (
        f"{told['run_id']} {told['attempt']}: step {told['global_step']} of {told['total_steps']}"
        f" once more, on one rank, {told['device']}{other}, {told['precision']}"
    )
    first = told["first"]
    if first is None:
        return [
            begin,
            (
                "every number is finite this time: the weights and the samples are not the cause. A"
                " GPU or a memory that is not sound, or another number of ranks, would be"
            ),
        ]
    found = [begin, f"not finite first: {_place(told)}"]
    if told["samples"]:
        found.append(_samples(told))
    return [*found, f"to try: {_advice(first, told)}"]


def _samples(told: dict[str, Any]) -> str:
    """Which samples are not finite: pictures by number and class, masks and rows of a table by
    number.
    """
    named = ", ".join(_sample(sample) for sample in told["samples"][:SHOWN])
    if (more := told["samples_not_finite"] - SHOWN) > 0:
        named += f" and {more} more"
    of_all = f"in {told['samples_not_finite']} of {told['samples_of_step']} {_unit(told)}s"
    return f"{of_all}, by their numbers in the train split: {named}"


def _sample(sample: dict[str, Any]) -> str:
    known = [sample[key] for key in ("class", "file") if key in sample]
    return f"{sample['sample']} ({', '.join(known)})" if known else str(sample["sample"])


def _unit(told: dict[str, Any]) -> str:
    """What one sample is; runs with older code do not say it."""
    unit: str = told.get("unit", "sample")
    return unit


def _place(told: dict[str, Any]) -> str:
    first = told["first"]
    what, layer, largest = first["what"], first["layer"], first["largest_input"]
    if what == "weights":
        return f"{layer}, before the step begins"
    if what == "pictures":
        kind = "rows" if _unit(told) == "row" else "pictures"
        return f"the {kind} themselves, before any layer"
    if what == "norm of all gradients":
        return (
            f"the norm of all gradients: each is finite; the largest, {largest:.2g} in {layer}, is"
            " too large to square"
        )
    if what == "loss":
        outputs = "all logits are finite, and too far apart"
        if _unit(told) == "row":
            outputs = "all outputs are finite, and too far from the targets to be squared"
        return f"the loss of chunk {first['chunk']}: {outputs}"
    if what != "output":
        named = f"gradient of {layer}" if what.endswith("weight") else f"{what} of {layer}"
        return (
            f"the {named}, in the backward pass of chunk {first['chunk']}; its forward pass is"
            " finite"
        )
    seen = (
        "its input is not: what the model computes between this layer and the one before"
        if largest is None
        else f"its input is finite, {largest:.2g} at most"
    )
    return f"the output of {layer}, in the forward pass of chunk {first['chunk']}; {seen}"


def _advice(first: dict[str, Any], told: dict[str, Any]) -> str:
    if first["what"] == "weights":
        return f"the update of step {told['global_step'] - 1} made them so: {CALMER}"
    if first["what"] == "pictures" and _unit(told) == "row":
        return "look at these rows: a value in them is not finite or too large for float32"
    if first["what"] == "pictures":
        return "look at these samples, and at train.data.mean and std"
    if told["precision"] == "fp16":
        return f"fp16 ends at 65,504: train.precision bf16 or fp32; or {CALMER}"
    return CALMER
