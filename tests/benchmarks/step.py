"""What a step of the trainer costs with everything on, beside a bare loop over the same data: one
process, one thread.

`python -m tests.benchmarks.step` prints one JSON row for each piece of work; exit status 1 where
one misses its bar. Everything: the guard against numbers that are not finite, the watchdog, the
agreement on when to stop, metrics.jsonl and wandb (offline) every 50 steps, and each run ends with
a checkpoint. The bare loop is PyTorch's tutorial's, with a fused optimizer, its pictures indexed
out of one tensor and normalised batch by batch; it reads its mean loss every 50 steps. runs: each
run's pair of milliseconds a step (trainer, bare loop), the two alternating; ratio: of the medians.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from tests import ranks
from trainer import models
from trainer.config.files.layout import RunDir
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import Prepared, load
from trainer.ranks import group, watchdog
from trainer.state import Trainer
from trainer.train import train

RUNS = 31
SAMPLES = 4096
LENET = {"name": "lenet"}
RESNET = {"name": "resnet", "width": 16, "blocks": [1, 1, 1, 1]}  # resnet_cifar's fallback
WORK: list[tuple[str, dict[str, Any], int, int, float]] = [
    ("the CIFAR-10 tutorial's network, batch 4", LENET, 4, 1000, 1.15),
    ("the CIFAR-10 tutorial's network, batch 128", LENET, 128, 25, 1.05),
    ("a narrow ResNet, batch 128", RESNET, 128, 3, 1.05),
]


class Ours:
    """The trainer's own loop, a piece of a run at a time."""

    def __init__(self, run: RunDir, data: Prepared, config: Any) -> None:
        self.trainer = Trainer(config, group.start(config, run), data)
        self.trainer.restore()

    def steps(self, count: int) -> None:
        t = self.trainer
        how = t.config.execution.model_copy(update={"stop_after_step": t.step + count})
        t.config = t.config.model_copy(update={"execution": how})
        train(t)


class Bare:
    """What a person writes."""

    def __init__(self, data: Prepared, model: Any, batch: int) -> None:
        self.images = torch.from_numpy(data.splits["train"].images)
        self.labels = torch.from_numpy(data.splits["train"].labels)
        self.mean, self.std = (torch.tensor(x).view(1, -1, 1, 1) for x in (data.mean, data.std))
        self.model, self.batch = model, batch
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, fused=True)

    def steps(self, count: int) -> None:
        order, running = torch.randperm(len(self.labels)), torch.zeros(())
        for step in range(count):
            begin = step * self.batch % len(order)
            index = order[begin : begin + self.batch]
            images = self.images[index].float().div_(255).sub_(self.mean).div_(self.std)
            loss = functional.cross_entropy(self.model(images), self.labels[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            running += loss.detach()
            if step % 50 == 49:
                running = torch.zeros(()) * running.item()


def ms_per_step(steps: Callable[[int], None], count: int) -> float:
    begun = time.perf_counter()
    steps(count)
    return 1000 * (time.perf_counter() - begun) / count


def measure(
    folder: Path, model: dict[str, Any], batch: int, count: int
) -> list[tuple[float, float]]:
    config = ranks.config(
        epochs=1_000_000,
        global_batch_size=batch,
        data={"name": "synthetic", "samples": SAMPLES},
        model=model,
        optimizer={"name": "sgd", "lr": 0.001, "momentum": 0.9},
        schedule={"name": "constant"},
        evaluate_every_epochs=1_000_000,
        execution={"log_every_steps": 50, "tracking": {"mode": "offline"}},
    )
    run = ranks.make_run(folder, config, prepare(config.train.data, folder, folder))
    data = load(run)
    ours = Ours(run, data, config)
    bare = Bare(
        data, models.build(config.train.model, len(data.classes), 3, (32, 32)).train(), batch
    )
    pairs = []
    for _ in range(RUNS + 1):
        pair = ms_per_step(ours.steps, count), ms_per_step(bare.steps, count)
        ours.trainer.writer.wait()
        pairs.append(pair)
    ours.trainer.tracker.finish(0)
    return pairs[1:]  # the first warms up


def main() -> None:
    missed = False
    os.environ["WANDB_SILENT"] = "true"
    for work, model, batch, count, bar in WORK:
        with (
            tempfile.TemporaryDirectory() as folder,
            (Path(folder) / "log").open("w") as log,
            contextlib.redirect_stdout(log),
        ):
            runs = measure(Path(folder), model, batch, count)
        ours, bare = (statistics.median(values) for values in zip(*runs, strict=True))
        missed = missed or ours / bare > bar
        row = {
            "work": f"a step of {work}",
            "against": "a bare loop",
            "ratio": round(ours / bare, 3),
            "bar": f"<={bar}",
            "runs": [[round(a, 3), round(b, 3)] for a, b in runs],
            "machine": f"{platform.machine()}, 1 thread",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        print(json.dumps(row), flush=True)
    assert watchdog.last_step()  # it was on
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
