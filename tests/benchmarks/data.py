"""What feeding the loop costs: batches on the device beside the same ones through a DataLoader, and
augmentation at once beside one after the other. Pictures of CIFAR-10's size, cropped and flipped;
the network of PyTorch's tutorial, one thread.

`python -m tests.benchmarks.data` prints one JSON row for each piece of work; exit status 1 where
one misses its bar. runs: each run's pair of images/s (work, against); ratio: of the medians. The
two alternate, so that a slow moment meets both.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tests import ranks
from trainer import models, randomness
from trainer.batches.batches import Batches, Sampling, augment
from trainer.batches.loader import Loader
from trainer.config.data import ImageData, SyntheticData
from trainer.config.models.model import LeNetModel
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import Prepared, load

RUNS = 9
IMAGES = {128: 6_400, 4: 2_000}  # of a run, by batch size: many times what workers make ahead
DATA = SyntheticData(
    name="synthetic", samples=20_000, random_crop_padding=4, random_horizontal_flip=True
)


class Training:
    """The tutorial's network under SGD with momentum."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = models.build(LeNetModel(name="lenet", channels=[6, 16]), 10, 3, (32, 32))
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.001, momentum=0.9, fused=True
        )

    def images_per_s(self, batches: Batches, batch_size: int) -> float:
        """Over IMAGES, after as many steps as bring all workers to work."""
        warm, steps = 10, IMAGES[batch_size] // batch_size
        for step in range(warm + steps):
            if step == warm:
                begun = time.perf_counter()
            for batch in batches.at(step):
                self.optimizer.zero_grad(set_to_none=False)
                functional.cross_entropy(self.model(batch.images), batch.labels).backward()
                self.optimizer.step()
        return steps * batch_size / (time.perf_counter() - begun)


def feeds(data: Prepared, batch_size: int, workers: int) -> tuple[Batches, Loader]:
    how: dict[str, Any] = {
        "sampling": Sampling(0, batch_size, batch_size, rank=0, world_size=1),
        "device": torch.device("cpu"),
    }
    return Batches(data, DATA, **how), Loader(data, DATA, workers=workers, epochs=1, **how)


def one_after_the_other(
    images: Tensor, index: Tensor, epoch: int, config: ImageData, seed: int
) -> Tensor:
    """What `augment` does, in the obvious way."""
    padding, (n, _, height, width) = config.random_crop_padding, images.shape
    padded = functional.pad(images, (padding,) * 4)
    y = randomness.integers(randomness.key(seed, randomness.CROP_Y, epoch), index, 2 * padding + 1)
    x = randomness.integers(randomness.key(seed, randomness.CROP_X, epoch), index, 2 * padding + 1)
    rows, columns = (
        (y[:, None] + torch.arange(height))[:, :, None],
        (x[:, None] + torch.arange(width))[:, None, :],
    )
    images = padded[torch.arange(n)[:, None, None], :, rows, columns].permute(0, 3, 1, 2)
    flip = randomness.integers(randomness.key(seed, randomness.FLIP, epoch), index, 2).bool()
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def augmented_per_s(data: Prepared, function: Callable[..., Tensor]) -> float:
    images, index = torch.from_numpy(data.splits["train"].images[:512]), torch.arange(512)
    begun = time.perf_counter()
    for epoch in range(20):
        function(images, index, epoch, DATA, 0)
    return 20 * 512 / (time.perf_counter() - begun)


def row(work: str, against: str, bar: float, runs: list[tuple[float, float]]) -> dict[str, Any]:
    ours, plain = (statistics.median(values) for values in zip(*runs, strict=True))
    return {
        "work": work,
        "against": against,
        "ratio": round(ours / plain, 3),
        "bar": f">={bar}",
        "runs": [[round(a), round(b)] for a, b in runs],
        "unit": "images/s",
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = prepare(DATA, Path(folder), Path(folder))
        data = load(ranks.make_run(Path(folder), ranks.config(), manifest))
        runs = [
            (augmented_per_s(data, augment), augmented_per_s(data, one_after_the_other))
            for _ in range(RUNS)
        ]
        rows.append(row("crops and flips gathered at once", "one after the other", 1.5, runs))
        for batch_size in IMAGES:
            for workers in (0, 1, 2):
                runs, training = [], Training()
                for _ in range(RUNS):
                    on_the_device, loaded = feeds(data, batch_size, workers)
                    pair = (
                        training.images_per_s(on_the_device, batch_size),
                        training.images_per_s(loaded, batch_size),
                    )
                    runs.append(pair)
                    loaded.close()
                against = f"through a DataLoader with {workers} worker(s)"
                rows.append(row(f"batches of {batch_size} on the device", against, 0.8, runs))
    for found in rows:
        print(json.dumps(found))
    sys.exit(any(found["ratio"] < float(found["bar"][2:]) for found in rows))


if __name__ == "__main__":
    main()
