"""What a checkpoint costs the training, beside a plain torch.save of the same state to the same
disk: ResNet-18 with momentum.

`python -m tests.benchmarks.checkpoint [FOLDER]` prints one JSON row for each piece of work; exit
status 1 where one misses its bar. runs: each run's pair of seconds (work, against); ratio: of the
medians. The two alternate, so that a slow moment meets both.
"""

from __future__ import annotations

import itertools
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

from trainer import models
from trainer.checkpoints.files import size_bytes
from trainer.checkpoints.writer import Writer
from trainer.config.files.layout import RunDir
from trainer.config.models.model import ResNetModel

RUNS = 9
STEPS = 6  # of 16 pictures: long enough for a checkpoint to be written beside them


class Training:
    """ResNet-18 (width 64, blocks 2, 2, 2, 2) under SGD with momentum, on noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = models.build(
            ResNetModel(name="resnet", width=64, blocks=[2, 2, 2, 2]), 10, 3, (32, 32)
        )
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, fused=True)
        self.images, self.labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
        self.steps(1)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=False)
            functional.cross_entropy(self.model(self.images), self.labels).backward()
            self.optimizer.step()

    def state(self) -> dict[str, Any]:
        return {
            "weights": self.model.state_dict(),
            "trainer": {"optimizer": self.optimizer.state_dict()},
        }


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(
    training: Training, folder: Path
) -> tuple[list[tuple[float, float]], list[tuple[float, float]], list[float]]:
    """Pairs of the stall of a save and torch.save; pairs of a save with STEPS steps beside its
    writing and one that the steps wait for; and how long after each of the former its checkpoint
    was on the disk.
    """
    run = RunDir(folder / "benchmark")
    run.path.mkdir()
    writer = Writer(run, run.attempt("local-1"))
    numbers = itertools.count()
    stalls, whole, written = [], [], []

    def save() -> None:
        writer.save(next(numbers), **training.state(), manifest={})

    def save_and_wait() -> None:
        save()
        writer.wait()

    save_and_wait()  # makes the buffers
    for _ in range(RUNS):
        stall = seconds(save)
        beside = stall + seconds(lambda: training.steps(STEPS))
        writer.wait()
        if writer.problem or writer.last_save_s is None:
            sys.exit(f"no checkpoint was written: {writer.problem}")
        written.append(writer.last_save_s)
        os.sync()
        stalls.append((stall, seconds(lambda: torch.save(training.state(), folder / "plain.pt"))))
        os.sync()
        whole.append((beside, seconds(save_and_wait) + seconds(lambda: training.steps(STEPS))))
    return stalls, whole, written


def row(
    work: str, against: str, bar: float, runs: list[tuple[float, float]], **facts: Any
) -> dict[str, Any]:
    ours, plain = (statistics.median(values) for values in zip(*runs, strict=True))
    return {
        "work": work,
        "against": against,
        "ratio": round(ours / plain, 3),
        "bar": f"<={bar}",
        "runs": [[round(a, 4), round(b, 4)] for a, b in runs],
        **facts,
    }


def main() -> None:
    training = Training()
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        stalls, whole, written = measure(training, Path(folder))
    facts = {
        "state_mb": round(size_bytes(training.state()) / 1e6, 1),
        "on_disk_after_s": round(statistics.median(written), 3),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    rows = [
        row("stall of a checkpoint's save", "torch.save", 0.5, stalls, **facts),
        row(
            f"a save and {STEPS} steps beside its writing",
            "the same, the steps waiting for the disk",
            1.1,
            whole,
            **facts,
        ),
    ]
    for found in rows:
        print(json.dumps(found))
    sys.exit(any(found["ratio"] > float(found["bar"][2:]) for found in rows))


if __name__ == "__main__":
    main()
