"""What a person looks at, as data for the report: train pictures as the model is given them, the newest evaluation by class, and
the most confident mistakes. Rank 0 alone writes; nothing reads it back into training."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.config.layout import RunDir, write_json
from trainer.config.run import TrainConfig
from trainer.data import augment
from trainer.data.batches import Batches, MicroBatch
from trainer.data.prepared import Prepared
from trainer.distributed import say
from trainer.evaluate import Evaluation

MOST_PICTURES = 16
DRAWS = 10
MOST_CLASSES = 100  # of a confusion matrix that a person can look at


def write_samples(run: RunDir, data: Prepared, batches: Batches, micro_batches: list[MicroBatch]) -> None:
    """The first pictures of a step, augmented, un-normalised for the eye."""
    pictures = []
    for batch in micro_batches:
        for image, label in zip(batches.for_the_eye(batch.images).numpy(), batch.labels.tolist(), strict=True):
            pictures.append({"png": png(image), "truth": data.classes[label]})
            if len(pictures) == MOST_PICTURES:
                break
    _write(run.samples, {"pictures": pictures[:MOST_PICTURES]})


def write_augmentations(run: RunDir, data: Prepared, config: TrainConfig) -> None:
    """Ten draws of each augmentation, and of all in their order, of one train picture: those of its first ten epochs."""
    image = torch.from_numpy(data.splits["train"].read(0, 1)[0])
    chain, rows = config.data.augment, []
    alone = [(f"{number}. {a.name}", [a]) for number, a in enumerate(chain, start=1)]
    for name, some in alone + ([("all, in this order", chain)] if len(chain) > 1 else []):
        drawn = [augment.apply(image, torch.zeros(1, dtype=torch.int64), epoch, some, config.seed) for epoch in range(DRAWS)]
        rows.append({"name": name.replace("_", " "), "pngs": [png(one[0].numpy()) for one in drawn]})
    if rows:
        _write(run.augmentations, {"rows": rows})


def write_evaluation(run: RunDir, data: Prepared, split: str, result: Evaluation, global_step: int, epoch: int) -> None:
    """Samples and correct ones of each class, the confusion matrix (rows are the truth) and, of the test split, the mistakes."""
    confusion = result.confusion
    place = {"split": split, "global_step": global_step, "epoch": epoch}
    _write(run.evaluation(split), {
        **place, "classes": data.classes, "samples": confusion.sum(1).tolist(), "correct": confusion.diagonal().tolist(),
        "confusion": confusion.tolist() if len(data.classes) <= MOST_CLASSES else None,
    })  # fmt: skip
    if split != "test":
        return
    pictures: list[dict[str, Any]] = []
    for mistake in result.mistakes:
        images, labels = data.splits[split].read(mistake.sample, mistake.sample + 1)
        pictures.append({
            "png": png(images[0]), "truth": data.classes[int(labels[0])], "predicted": data.classes[mistake.predicted],
            "probability": mistake.probability, "sample": mistake.sample,
        })  # fmt: skip
    _write(run.misclassified, {**place, "pictures": pictures})


def _write(path: Path, value: dict[str, Any]) -> None:
    """What only a person looks at stops no training where the disk is full."""
    try:
        write_json(path, value)
    except OSError as error:
        say(f"{path.name} not written, training goes on: {error}")


def png(image: np.ndarray) -> str:
    """A picture, uint8 [C, H, W], as base64 of a PNG file: RGB where it has three channels, else the first one in grey."""
    from PIL import Image  # 0.1 s, rank 0 alone

    colour = len(image) == 3
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0) if colour else image[0])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
