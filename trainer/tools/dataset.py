"""`python -m trainer.tools.dataset config.json --data-dir D --cache-dir C --out PICTURE`: what a
job's data hold, and how fast they are read; one JSON object on stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainer.batches import loader
from trainer.batches.batches import Batches
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import EXIT_WRONG
from trainer.config.run import RunConfig
from trainer.config.tables import TableData
from trainer.datasets.prepare import prepare
from trainer.output.captions import Line, captioned, grid
from trainer.output.figures import laid_over, named
from trainer.prepared.arrays import Prepared, Split, mapped
from trainer.prepared.classes import check
from trainer.prepared.errors import DataError
from trainer.prepared.masks import EncodedMasks
from trainer.prepared.pictures import BadPicture
from trainer.ranks import machine
from trainer.ranks.group import World

SHOWN, COLUMNS = 16, 4
LONGEST_S = 60.0  # of a reading: an epoch that takes longer is told by its part
MOST_WORKERS = 4  # unless more are asked for


def look(
    config: RunConfig, data_dir: Path, cache_dir: Path, out: Path, workers: int | None
) -> dict[str, Any]:
    """Prepares the data where the cache lacks them, counts them, writes a grid of train pictures
    (of a table: none) to `out`, and reads an epoch from the device and through 0 ... `workers`
    workers. Raises DataError, OSError.
    """
    train = config.train
    record = prepare(
        train.data,
        data_dir,
        cache_dir,
        allow_unverified=config.execution.allow_unverified_data,
        most_pixels=config.execution.max_image_pixels,
    )
    try:
        record["notes"] += check(train.data, record, started=False)
    except DataError as error:  # what submit would refuse is shown as it is
        record["notes"] += str(error).splitlines()
    data = mapped(Path(record["path"]), train.data.validation, train.data.wanted())
    given = train.data.pictures()
    table = isinstance(train.data, TableData)
    counts = [] if workers == 0 else range(1, min(workers or MOST_WORKERS, machine.cpus()) + 1)
    reads = [read(data, config, None)] if can_live_on_device(data, config) else []
    reads += [] if table else [read(data, config, number) for number in (0, *counts)]
    return {
        "name": train.data.name,
        "path": record["path"],
        "made": record["made"],
        "classes": [] if table else data.classes,
        "prepared": list(record["shape"]),
        "given": [given.channels, given.height, given.width],
        "skipped": data.skipped,
        "mean": data.mean,
        "std": data.std,
        "counted": "pixels" if train.data.task == "segmentation" else "samples",
        "notes": record["notes"],
        "splits": {
            name: {
                "samples": len(split),
                "counts": None if table else count(split, len(data.classes)),
            }
            for name, split in data.splits.items()
        },
        "grid": None if table else show(data, config, out),
        "reads": reads,
    }


def count(split: Split, classes: int) -> list[int]:
    """How many samples of each class a split has; of masks how many pixels."""
    numbers, labels = np.arange(len(split)) if split.chosen is None else split.chosen, split.labels
    if labels.dtype != np.uint8:
        return np.bincount(labels[numbers], minlength=classes).tolist()
    found = np.zeros(256, np.int64)  # with those that have no class
    for number in numbers:
        mask = labels.mask(int(number)) if isinstance(labels, EncodedMasks) else labels[number]
        found += np.bincount(mask.reshape(-1), minlength=256)
    return found[:classes].tolist()


def can_live_on_device(data: Prepared, config: RunConfig) -> bool:
    """Whether a run would hold them there: encoded pictures, and sets that are too large, come
    through workers.
    """
    images = data.splits["train"].images
    return (
        isinstance(images, np.ndarray) and images.nbytes <= config.execution.device_data_gb * 2**30
    )


def batches_of(data: Prepared, config: RunConfig, workers: int | None) -> Batches:
    """The batches of one rank on the CPU, of one epoch. workers: None: from where a run has them;
    else through so many.
    """
    how: dict[str, Any] = {"ranks": 1, "device": "cpu"}
    if workers is not None:
        how |= {"device_data_gb": 0.0, "workers": workers}
    alone = config.model_copy(
        update={
            "execution": config.execution.model_copy(update=how),
            "train": config.train.model_copy(update={"epochs": 1}),
        }
    )
    run = RunDir(data.path)
    return loader.build(
        data, alone, World(0, 0, 1, torch.device("cpu"), run, run.attempt("none"), None)
    )


def read(
    data: Prepared, config: RunConfig, workers: int | None, longest_s: float = LONGEST_S
) -> dict[str, Any]:
    """One epoch of batches as a rank gets them, augmented and normalised, with nothing else to do.
    workers: None: on the device.

    seconds: of what was read; first_s: to the first batch, in which workers start; epoch_s: of the
    whole epoch, estimated by the rest where it was not read to its end.
    """
    batches, began = batches_of(data, config, workers), time.perf_counter()
    samples, first_s, first = 0, 0.0, 0
    try:
        for step in range(batches.steps_per_epoch):
            samples += sum(len(batch.labels) for batch in batches.at(step))
            if step == 0:
                first_s, first = time.perf_counter() - began, samples
            if time.perf_counter() - began > longest_s:
                break
        seconds = time.perf_counter() - began
    finally:
        if isinstance(batches, loader.Loader):
            batches.close()
    left = len(data.splits["train"]) - samples
    each = (seconds - first_s) / (samples - first) if samples > first else seconds / samples
    return {
        "workers": workers,
        "samples": samples,
        "seconds": seconds,
        "first_s": first_s,
        "epoch_s": seconds + left * each,
        "whole": left == 0,
    }


def show(data: Prepared, config: RunConfig, out: Path) -> str:
    """Writes the first train pictures of an epoch, as the model is given them but for the
    normalisation, with their classes.
    """
    sheet = grid(list(pages(data, batches_of(data, config, 0))), COLUMNS)
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    return str(out)


def pages(data: Prepared, batches: Batches) -> Iterator[Image.Image]:
    """At most SHOWN pictures, each with its class, or with its mask's colours laid over it and the
    classes in it.
    """
    left = SHOWN
    for step in range(batches.steps_per_epoch):
        for batch in batches.at(step):
            for image, label in zip(
                batches.for_the_eye(batch.images)[:left].numpy(), batch.labels, strict=False
            ):
                pixels = laid_over(image, label.numpy()) if label.dim() else image
                shown = pixels.transpose(1, 2, 0).copy() if len(pixels) == 3 else pixels[0].copy()
                yield captioned(
                    Image.fromarray(shown),
                    [Line(named(label, data.classes) if label.dim() else data.classes[label])],
                )
                left -= 1
            if left == 0:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the picture to write")
    parser.add_argument(
        "--workers", type=int, help="the most to read with; else as many as CPUs, 4 at most"
    )
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    torch.set_num_threads(config.execution.threads_per_rank)
    try:
        print(
            json.dumps(
                look(
                    config,
                    arguments.data_dir,
                    arguments.cache_dir,
                    arguments.out,
                    arguments.workers,
                )
            )
        )
    except (DataError, BadPicture, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)


if __name__ == "__main__":
    main()
