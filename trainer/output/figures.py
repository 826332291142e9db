"""What a person looks at, as data for the report: train pictures as the model is given them, the
newest evaluation by class, predictions, and the most confident mistakes. Rank 0 alone writes;
nothing reads it back into training.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.batches import augment
from trainer.batches.batches import Batches, MicroBatch
from trainer.batches.rows import Rows
from trainer.config.data import ImageData
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.run import TrainConfig
from trainer.prepared.arrays import Prepared
from trainer.prepared.masks import VOID, colour_map
from trainer.ranks.environment import say
from trainer.tasks import Evaluation, Prediction, iou

MOST_PICTURES = 16
# pixels of a picture that is shown with its prediction, at half of that: a photograph would make a
# heavy page
PREDICTED_SIDE = 192
MASK_SIDE = 240  # pixels of a picture that is shown with its mask
DRAWS = 10
MOST_CLASSES = 100  # of a confusion matrix that a person can look at


def write_samples(
    run: RunDir, data: Prepared, batches: Batches, micro_batches: list[MicroBatch]
) -> None:
    """The first pictures of a step, augmented, un-normalised for the eye.

    Rows of a table are none.
    """
    if isinstance(batches, Rows):
        return
    pictures = []
    for batch in micro_batches:
        for image, label in zip(
            batches.for_the_eye(batch.images).numpy(), batch.labels, strict=True
        ):
            # a mask, laid over its picture: whether both were cut out alike can be seen
            if label.dim():
                pictures.append(
                    {
                        "png": png(laid_over(image, label.cpu().numpy()), MASK_SIDE),
                        "truth": named(label, data.classes),
                    }
                )
            else:
                pictures.append({"png": png(image), "truth": data.classes[int(label)]})
            if len(pictures) == MOST_PICTURES:
                break
    _write(run.samples, {"pictures": pictures[:MOST_PICTURES]})


def write_augmentations(run: RunDir, data: Prepared, config: TrainConfig) -> None:
    """Ten draws of each augmentation, and of all in their order, of one train picture: those of its
    first ten epochs.
    """
    if not isinstance(config.data, ImageData) or not (chain := config.data.augment):
        return
    image, rows = torch.from_numpy(data.splits["train"].read(0, 1)[0]), []
    alone = [(f"{number}. {a.name}", [a]) for number, a in enumerate(chain, start=1)]
    for name, some in alone + ([("all, in this order", chain)] if len(chain) > 1 else []):
        drawn = [
            augment.apply(image, torch.zeros(1, dtype=torch.int64), epoch, some, config.seed)
            for epoch in range(DRAWS)
        ]
        rows.append(
            {"name": name.replace("_", " "), "pngs": [png(one[0].numpy()) for one in drawn]}
        )
    _write(run.augmentations, {"rows": rows})


def write_evaluation(
    run: RunDir, data: Prepared, split: str, result: Evaluation, global_step: int, epoch: int
) -> None:
    """Samples and correct ones of each class, the confusion matrix (rows are the truth) and, of the
    test split, predictions.

    Where outputs are not finite, null and no pictures take the place of an earlier evaluation's.
    """
    if not result.metrics:  # of numbers, which have no classes
        return
    place = {"split": split, "global_step": global_step, "epoch": epoch}
    _write(
        run.evaluation(split),
        {**place, "classes": data.classes, **counts(result, len(data.classes))},
    )
    if split != "test":
        return
    if result.predicted is not None:
        write_masks(run, data, result.predicted, place)
        return
    for path, predictions in (
        (run.predictions, result.predictions),
        (run.misclassified, result.mistakes),
    ):
        _write(path, {**place, "pictures": [predicted(data, one) for one in predictions]})


def counts(result: Evaluation, classes: int) -> dict[str, Any]:
    """What was counted of each class; null where outputs are not finite, and of how
    many samples.
    """
    confusion = result.confusion
    if confusion is None:
        return {
            "samples": None,
            "correct": None,
            "confusion": None,
            "not_finite": result.not_finite,
        }
    return {
        "samples": confusion.sum(1).tolist(),
        "correct": confusion.diagonal().tolist(),
        "confusion": confusion.tolist() if classes <= MOST_CLASSES else None,
        **({"iou": iou(confusion)} if result.predicted is not None else {}),
    }


def predicted(data: Prepared, one: Prediction) -> dict[str, Any]:
    """A test picture, its class, and the one that it is taken for."""
    images, labels = data.splits["test"].read(one.sample, one.sample + 1)
    return {
        "png": png(images[0], PREDICTED_SIDE),
        "truth": data.classes[int(labels[0])],
        "predicted": data.classes[one.predicted],
        "probability": one.probability,
        "sample": one.sample,
    }


def write_masks(
    run: RunDir, data: Prepared, predicted: dict[int, Tensor], place: dict[str, Any]
) -> None:
    """Some test pictures, each with its mask and the predicted one (uint8 [H, W]), and the colours
    of the classes.
    """
    scenes = []
    for number, mask in predicted.items():
        (image,), (truth,) = data.splits["test"].read(number, number + 1)
        guess, known = mask.numpy(), truth != VOID
        # pixels left out, not mixed: a mask's colours stay those of its classes
        step = -(-max(truth.shape) // MASK_SIDE)
        scenes.append(
            {
                "picture": png(image, MASK_SIDE),
                "truth": png(coloured(truth[::step, ::step])),
                "predicted": png(coloured(guess[::step, ::step])),
                "accuracy": float((truth == guess)[known].mean()) if known.any() else None,
                "sample": number,
            }
        )
    colours = [
        {"name": name, "colour": colour_map()[i].tolist()} for i, name in enumerate(data.classes)
    ]
    _write(run.masks, {**place, "classes": colours, "scenes": scenes})


def coloured(mask: np.ndarray) -> np.ndarray:
    """A mask, uint8 [H, W], in VOC's colours: uint8 [3, H, W]."""
    return np.ascontiguousarray(colour_map()[mask].transpose(2, 0, 1))


def laid_over(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The colours of a mask over its picture, half of each: uint8 [3, H, W]."""
    return ((image.astype(np.uint16) + coloured(mask)) // 2).astype(np.uint8)


def named(mask: Tensor, classes: list[str]) -> str:
    """The classes in a mask, the most frequent first."""
    numbers, pixels = mask[mask != VOID].unique(return_counts=True)
    return ", ".join(classes[int(numbers[i])] for i in pixels.argsort(descending=True))


def _write(path: Path, value: dict[str, Any]) -> None:
    """What only a person looks at stops no training where the disk is full."""
    try:
        write_json(path, value)
    except OSError as error:
        say(f"{path.name} not written, training goes on: {error}")


def png(image: np.ndarray, side: int | None = None) -> str:
    """A picture, uint8 [C, H, W], as base64 of a PNG file: RGB where it has three channels, else
    the first one in grey. side: what its longer side is made smaller to, in pixels.
    """
    from PIL import Image  # 0.1 s, rank 0 alone

    colour = len(image) == 3
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0) if colour else image[0])
    file = io.BytesIO()
    made = Image.fromarray(pixels)
    if side is not None and side < max(made.size):
        width, height = (max(1, round(n * side / max(made.size))) for n in made.size)
        made = made.resize((width, height), Image.Resampling.BILINEAR)
    made.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
