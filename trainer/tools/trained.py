"""A run's model as a checkpoint has it, and what its test pictures go through before it: what
predict and export share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainer import models
from trainer.batches.normalise import Normalise
from trainer.checkpoints.files import Checkpoint
from trainer.config.data import ImageData, SmallPictures
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.evaluate import autocast
from trainer.models import fcn
from trainer.prepared import pictures
from trainer.prepared.masks import Crop
from trainer.prepared.pictures import Fit


class TakesNoPictures(Exception):
    """The run's model takes nothing that a picture's file can hold; the message is for a person."""


@dataclass(frozen=True)
class Trained:
    """A model in evaluation mode, with the names of its classes, and what makes a picture of any
    size what it was evaluated on.

    fit: a picture -> uint8 [C, H, W]; normalise: of these a batch -> what the model is given. Of a
    segmentation, whose model is fully convolutional, evaluations cut out the middle, and `pixels`
    takes the whole picture.
    """

    config: RunConfig
    checkpoint: Checkpoint
    classes: list[str]
    fit: Fit | Crop
    normalise: Normalise
    model: nn.Module
    device: torch.device

    def read(self, data: bytes) -> Image.Image:
        """A picture's file -> an image of mode L or RGB. Raises BadPicture."""
        return pictures.read(
            data, self.fit.channels, self.config.execution.max_image_pixels or self.fit.most_pixels
        )

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 [C, H, W]: a test picture; of a segmentation the whole picture, its right and lower
        edge repeated up to the next multiple of 32, which the fcn wants. Raises BadPicture.
        """
        if isinstance(self.fit, Fit):
            return self.fit(image)
        whole = pictures.pixels(image)
        return np.pad(
            whole, ((0, 0), *((0, -side % fcn.STRIDE) for side in whole.shape[1:])), mode="edge"
        )

    @torch.no_grad()
    def outputs(self, pixels: Tensor) -> Tensor:
        """uint8 [n, C, H, W] -> float32 [n, classes] or [n, classes, H, W] on the CPU, computed as
        evaluations compute it.
        """
        with autocast(self.config.train.precision, self.device):
            return self.model(self.normalise(pixels.to(self.device))).float().cpu()


def load(
    run: RunDir, config: RunConfig, checkpoint: Checkpoint, kind: Literal["cpu", "cuda"]
) -> Trained:
    """The model of a run on a kind of device, with a checkpoint's weights.

    Raises TakesNoPictures, and FileNotFoundError where the run has no record of its data.
    """
    train = config.train
    record = record_of(run)
    if not isinstance(train.data, ImageData):
        raise TakesNoPictures(
            f"{run.run_id} learns from the rows of a table ({train.data.name}), not from pictures"
        )
    given, device, fit = train.data.pictures(), torch.device(kind), fit_of(train.data, record)
    if given.channels not in (1, 3):
        raise TakesNoPictures(
            f"{run.run_id} takes pictures of {given.channels} channels; a picture's file has one or"
            " three"
        )
    memory_format = torch.channels_last if train.channels_last else torch.contiguous_format
    mean, std = train.data.mean or record["mean"], train.data.std or record["std"]
    normalise = Normalise(
        mean, std, None if isinstance(fit, Crop) else (given.height, given.width), memory_format
    )
    return Trained(
        config,
        checkpoint,
        record["classes"],
        fit,
        normalise.to(device),
        model_of(config, record, checkpoint).to(device, memory_format=memory_format),
        device,
    )


def record_of(run: RunDir) -> dict[str, Any]:
    """What is known of the run's prepared data. Raises FileNotFoundError."""
    record: dict[str, Any] | None = read_json(run.data_record)
    if not record:
        raise FileNotFoundError(
            f"{run.data_record} is missing: `batchyard submit` writes it before a run begins"
        )
    return record


def model_of(config: RunConfig, record: dict[str, Any], checkpoint: Checkpoint) -> nn.Module:
    """The model with a checkpoint's weights, in evaluation mode."""
    given = config.train.data.pictures()
    model = models.build(
        config.train.model, len(record["classes"]), given.channels, (given.height, given.width)
    )
    model.load_state_dict(checkpoint.weights)
    return model.eval()


def fit_of(config: ImageData, record: dict[str, dict[str, int]]) -> Fit | Crop:
    """How a picture becomes one of the run's test pictures; of a set of one small size the
    picture's middle, made as small.
    """
    if "crop" in record:
        return Crop(**record["crop"])
    if "fit" in record:
        return Fit(**record["fit"])
    assert isinstance(config, SmallPictures), f"{config} says nothing of its pictures' size"
    own = config.own()
    return Fit(own.channels, own.height, own.height, keep_aspect=True)


def described(config: ImageData, record: dict[str, Any]) -> dict[str, Any]:
    """For other programs: the names of the classes, how a file becomes `picture`, uint8 [C, H, W],
    and how that is normalised.
    """
    fit, given = fit_of(config, record), config.pictures()
    resize: dict[str, int] = {}
    if isinstance(fit, Fit):
        resize = (
            {"shorter_side": fit.resize}
            if fit.keep_aspect
            else {"height": fit.resize, "width": fit.resize}
        )
    channels, height, width = fit.shape
    return {
        "task": config.task,
        "classes": record["classes"],
        "picture": {
            "mode": "L" if channels == 1 else "RGB",
            "resize": resize or None,
            "interpolation": "bilinear, antialiased",
            "centre_crop": [height, width],
            "dtype": "uint8",
            "shape": [channels, height, width],
        },
        "normalise": {
            "divide_by": 255,
            "resize": (
                [given.height, given.width]
                if (given.height, given.width) != (height, width)
                else None
            ),
            "mean": config.mean or record["mean"],
            "std": config.std or record["std"],
        },
    }
