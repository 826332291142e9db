"""`train.data.augment`, the augmentations of train pictures in their order, and `train.mix`, of
whole batches.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainer.config.strict import Strict

Probability = Annotated[float, Field(gt=0, le=1)]


class HorizontalFlip(Strict):
    """Left becomes right (torchvision.transforms.RandomHorizontalFlip)."""

    name: Literal["horizontal_flip"]
    probability: Probability = 0.5


class VerticalFlip(Strict):
    """Top becomes bottom (torchvision.transforms.RandomVerticalFlip)."""

    name: Literal["vertical_flip"]
    probability: Probability = 0.5


class RandomCrop(Strict):
    """A random piece of the zero-padded picture, as large as the picture
    (torchvision.transforms.RandomCrop).
    """

    name: Literal["random_crop"]
    padding: int = Field(ge=1, description="zero pixels added to each side")


class Crop(Strict):
    """What a random resized crop draws."""

    scale: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.08, 1.0],
        min_length=2,
        max_length=2,
        description="least and largest part of the picture's area",
    )
    ratio: list[Annotated[float, Field(gt=0)]] = Field(
        [0.75, 4 / 3], min_length=2, max_length=2, description="least and largest width / height"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if low > high:
                raise ValueError(
                    f"{name} goes from the least to the largest, found [{low:g}, {high:g}]"
                )
        return self


class ResizedCrop(Crop):
    """A random piece, resized to the picture's own size
    (torchvision.transforms.RandomResizedCrop).
    """

    name: Literal["random_resized_crop"]


class ColourJitter(Strict):
    """Brightness, contrast, saturation and hue by random factors, in random order
    (torchvision.transforms.ColorJitter).
    """

    name: Literal["colour_jitter"]
    brightness: float = Field(
        0.0, ge=0, description="the factor lies in max(0, 1 - this) .. 1 + this"
    )
    contrast: float = Field(0.0, ge=0, description="likewise, about the picture's mean grey")
    saturation: float = Field(0.0, ge=0, description="likewise, about each pixel's grey")
    hue: float = Field(0.0, ge=0, le=0.5, description="turned by so much at most, of a full circle")

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.brightness or self.contrast or self.saturation or self.hue):
            raise ValueError(
                "colour_jitter changes nothing: give brightness, contrast, saturation or hue, as in"
                " brightness: 0.5"
            )
        return self


Augmentation = Annotated[
    HorizontalFlip | VerticalFlip | RandomCrop | ResizedCrop | ColourJitter,
    Field(discriminator="name"),
]


class Mixup(Strict):
    """Each picture and its label become a weighted mean of two (Zhang et al., arXiv:1710.09412)."""

    name: Literal["mixup"]
    alpha: float = Field(gt=0, description="the weight is drawn from Beta(alpha, alpha)")


class CutMix(Strict):
    """A box of each picture comes from another one, and as much of the label (Yun et al.,
    arXiv:1905.04899).
    """

    name: Literal["cutmix"]
    alpha: float = Field(gt=0, description="the part that stays is drawn from Beta(alpha, alpha)")


Mix = Annotated[Mixup | CutMix, Field(discriminator="name")]
