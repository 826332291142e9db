"""`python -m trainer.tools.replay RUN_DIR/config.json`: the step whose gradient was not finite,
once more, every layer looked at.

One JSON object on stdout. On one rank: a step's chunks are the same for every world size.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer import tasks
from trainer.batches.batches import MicroBatch, Step
from trainer.config.files.json_files import to_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import EXIT_WRONG, Outcome
from trainer.config.run import RunConfig
from trainer.config.tables import TableData
from trainer.guard import LEAST_SCALE
from trainer.prepared.arrays import Encoded, Prepared, load
from trainer.ranks import faults, group
from trainer.ranks.group import World
from trainer.state import Trainer
from trainer.train import gradients

MOST_SAMPLES = 20


class NothingToReplay(Exception):
    """The run has no step that was not finite; the message is for a person."""


@dataclass
class Chunk:
    """What one chunk of the step shows. samples: int64 [n], their numbers in the train split.
    found: what is not finite, in the order in which it came up.
    """

    number: int
    samples: Tensor
    found: list[dict[str, Any]] = field(default_factory=list)
    logits: Tensor | None = None

    def look(
        self, what: str, layer: str, value: Tensor, *, inputs: Any = (), by_sample: bool = True
    ) -> None:
        """Takes note of `value` where it is not finite. by_sample: its rows are the samples', and
        tell which ones.
        """
        bad = ~torch.isfinite(value.detach())
        if bad.any():
            rows = (
                bad.reshape(len(bad), -1).any(1)
                if by_sample and value.dim() and len(bad) == len(self.samples)
                else None
            )
            samples = None if rows is None else self.samples[rows.cpu()].tolist()
            largest = max(
                (float(x.detach().abs().max()) for x in inputs if isinstance(x, Tensor)),
                default=None,
            )
            self.found.append(finding(what, layer, self.number, samples, largest))


def finding(
    what: str,
    layer: str,
    chunk: int | None = None,
    samples: list[int] | None = None,
    largest_input: float | None = None,
) -> dict[str, Any]:
    """largest_input: None too where the input is not finite itself: the cause lies between this
    layer and the one before.
    """
    known = largest_input is not None and math.isfinite(largest_input)
    return {
        "what": what,
        "layer": layer,
        "chunk": chunk,
        "samples": samples,
        "largest_input": largest_input if known else None,
    }


def replay(run: RunDir, config: RunConfig) -> dict[str, Any]:
    """Runs the newest step that was not finite once more; what came up first is `first`.

    Raises NothingToReplay, OSError, ValueError.
    """
    attempt, state = find(run)
    trained_on = config.execution.device
    device = trained_on if trained_on == "cpu" or torch.cuda.is_available() else "cpu"
    how = config.execution.model_copy(update={"workers": 0, "device": device})
    train = config.train.model_copy(update={"compile": False})  # it would look into no layer
    config = config.model_copy(update={"train": train, "execution": how})
    torch.set_num_threads(how.threads_per_rank)
    world = World(0, 0, 1, torch.device(how.device), run, attempt, None)
    data = load(run, train.data.validation, wanted=train.data.wanted())
    trainer = Trainer(config, world, data)
    model, step = group.unwrap(trainer.model), state["global_step"] - 1
    model.load_state_dict(state["weights"])
    if trainer.guard.scale is not None:
        trainer.guard.scale.fill_(LEAST_SCALE)  # with which the run gave up
    found = [
        finding("weights", name)
        for name, value in model.state_dict().items()
        if not torch.isfinite(value).all()
    ]
    found = found or look_at_step(trainer, step)
    first = found[0] if found else None
    # in other chunks
    alike = [
        f for f in found if first and (f["what"], f["layer"]) == (first["what"], first["layer"])
    ]
    samples = sorted({number for f in alike for number in f["samples"] or ()})
    return {
        "run_id": run.run_id,
        "attempt": attempt.id,
        "global_step": step + 1,
        "total_steps": trainer.total_steps,
        "device": how.device,
        "trained_on": trained_on,
        "precision": train.precision,
        "first": first,
        "samples": [sample(data, number) for number in samples[:MOST_SAMPLES]],
        "samples_not_finite": len(samples),
        "samples_of_step": trainer.batches.at(step)[0].global_samples,
        "unit": "row" if isinstance(train.data, TableData) else "sample",
    }


def find(run: RunDir) -> tuple[Attempt, dict[str, Any]]:
    """The newest attempt that ended as not finite, and the state before its step.

    Raises NothingToReplay.
    """
    for attempt in reversed(run.all_attempts()):
        outcome = Outcome.read(attempt.outcome)
        if outcome is None or outcome.verdict != "nan":
            continue
        if not attempt.not_finite.exists():
            raise NothingToReplay(
                f"{attempt.id} of {run.run_id} kept no weights from before step"
                f" {outcome.global_step}: {attempt.not_finite} is missing"
            )
        return attempt, torch.load(attempt.not_finite, map_location="cpu", weights_only=True)
    raise NothingToReplay(
        f"no attempt of {run.run_id} ended by a number that is not finite (verdict nan): nothing to"
        " replay"
    )


def look_at_step(t: Trainer, step: int) -> list[dict[str, Any]]:
    """What is not finite in a step, chunk by chunk, each in the order in which it came up: the
    first is the cause.
    """
    model, guard = group.unwrap(t.model), t.guard
    model.train()
    _, numbers = t.batches.plan.index(range(step, step + 1))
    micro_batches = t.batches.at(step)
    faults.inject_fault(t.world, step, micro_batches[0].images)
    found: list[dict[str, Any]] = []
    position = 0
    for batch in micro_batches:
        assert batch.chunk is not None, "one rank has all chunks"
        chunk = Chunk(batch.chunk, numbers[position : position + len(batch.labels)])
        position += len(batch.labels)
        look_at_chunk(t, step, batch, chunk)
        found += chunk.found
        if chunk.found:
            t.optimizer.zero_grad(set_to_none=False)
    if not found and not torch.isfinite(guard.gradient_norm()):
        sizes = [
            (float(p.grad.abs().max()), name)
            for name, p in model.named_parameters()
            if p.grad is not None
        ]
        found.append(finding("norm of all gradients", max(sizes)[1], largest_input=max(sizes)[0]))
    return found


def look_at_chunk(t: Trainer, step: int, batch: MicroBatch, chunk: Chunk) -> None:
    """Runs the trainer's own `gradients` on one chunk, with hooks on every layer, its output's
    gradient and its weights'.
    """
    model = group.unwrap(t.model)
    chunk.look("pictures", "", batch.images)
    hooks: list[Any] = []

    def watch(name: str, module: nn.Module) -> None:
        layer = f"{name} ({type(module).__name__})" if name else "the model"

        def forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            chunk.look("output", layer, output, inputs=inputs)
            if not name:
                chunk.logits = output.detach()
            if output.requires_grad:
                output.register_hook(
                    lambda gradient: chunk.look("gradient of the output", layer, gradient)
                )

        def of_weight(weight: str) -> Callable[[Tensor], None]:
            return lambda p: chunk.look(
                "gradient of the weight", f"{weight} of {layer}", p.grad, by_sample=False
            )

        hooks.append(module.register_forward_hook(forward))
        for weight, parameter in module.named_parameters(recurse=False):
            hooks.append(parameter.register_post_accumulate_grad_hook(of_weight(weight)))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        gradients(model, Step(step, [batch]), t.config.train, t.world, t.guard, t.sums)
    finally:
        for hook in hooks:
            hook.remove()
    # between the forward and the backward pass
    if chunk.logits is not None and torch.isfinite(chunk.logits).all():
        train, smoothing = t.config.train, t.config.train.label_smoothing
        loss = tasks.of(train).loss
        losses = loss(
            chunk.logits.float(), batch.labels, train, label_smoothing=smoothing, reduction="none"
        )
        backward, chunk.found = chunk.found, []
        chunk.look("loss", "", losses)
        chunk.found += backward


def sample(data: Prepared, number: int) -> dict[str, Any]:
    """A train sample by its number, with its class where it has one, and its file where it came
    from one.
    """
    split = data.splits["train"]
    named = {"file": split.images.name(number)} if isinstance(split.images, Encoded) else {}
    known = (
        {"class": data.classes[int(split.labels[number])]} if split.labels.dtype == np.int64 else {}
    )
    return {"sample": number, **known, **named}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    run = RunDir(parser.parse_args().config.absolute().parent)
    try:
        print(to_json(replay(run, RunConfig.model_validate_json(run.config.read_text()))))
    except (NothingToReplay, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)


if __name__ == "__main__":
    main()
