"""One rank of test_gradients."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from trainer.batches.batches import Step
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.prepared.arrays import load
from trainer.ranks import group
from trainer.state import Trainer
from trainer.train import gradients


def save(environment: dict[str, str], run: RunDir, out: Path, steps: tuple[int, ...]) -> None:
    """Rank 0 writes the gradients of some steps to `out`, as {step: {name: gradient}}."""
    os.environ.clear()
    os.environ.update(environment)
    config = RunConfig.model_validate_json(run.config.read_text())
    world = group.start(config, run)
    trainer = Trainer(config, world, load(run))
    trainer.model.train()
    saved = {}
    for step in steps:
        trainer.optimizer.zero_grad(set_to_none=False)
        gradients(
            trainer.model,
            Step(step, trainer.batches.at(step)),
            config.train,
            world,
            trainer.guard,
            trainer.sums,
        )
        bare = group.unwrap(trainer.model)
        saved[step] = {name: p.grad.clone() for name, p in bare.named_parameters()}
        saved[step]["sums"] = group.total(trainer.sums, world).clone()
    if world.rank == 0:
        torch.save(saved, out)
    group.finish(world)
