"""`train.data`: one model a data set, and what its pictures are where that is known without reading them."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from trainer.config.augment import Augmentation, Crop
from trainer.config.strict import Strict


class Pictures(NamedTuple):
    """What the model is given: channels, height and width in pixels, classes (None: known once the data is prepared)."""

    channels: int
    height: int
    width: int
    classes: int | None


class ImageData(Strict):
    """What every set of small pictures of one size can do, on the device, to whole pieces of an epoch."""

    random_crop_padding: int = Field(0, ge=0, le=16, description="zero pixels added to each side before a random crop")
    random_horizontal_flip: bool = False
    augment: list[Augmentation] = Field([], description="further augmentations of train pictures, in this order")
    mean: list[float] | None = Field(None, description="of each channel, of pixels over 0..1; null: the train pictures' own")
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, description="likewise")
    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="part of the train pictures that is held out to choose by; the same ones for every seed"
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError("mean and std go together, one number a channel each, as in mean: [0.5], std: [0.5]")
        return self

    def pictures(self) -> Pictures:
        """What the pictures are, as far as the settings alone tell."""
        raise NotImplementedError

    def has_validation(self) -> bool:
        """Whether there is a split to choose by."""
        return self.validation is not None


class DigitsData(ImageData):
    """scikit-learn's digits: 1,797 grey pictures of 8x8, 10 classes; a seeded permutation, 1,437 train / 360 test."""

    name: Literal["digits"]

    def pictures(self) -> Pictures:
        return Pictures(1, 8, 8, 10)


class CIFAR10Data(ImageData):
    """CIFAR-10: 50,000 + 10,000 colour pictures of 32x32, 10 classes (Krizhevsky 2009)."""

    name: Literal["cifar10"]

    def pictures(self) -> Pictures:
        return Pictures(3, 32, 32, 10)


class FashionMNISTData(ImageData):
    """Fashion-MNIST: 60,000 + 10,000 grey pictures of 28x28, 10 classes (Xiao et al., arXiv:1708.07747)."""

    name: Literal["fashion_mnist"]

    def pictures(self) -> Pictures:
        return Pictures(1, 28, 28, 10)


class RandomResizedCrop(Crop):
    """A random piece of the picture, resized to `size` (torchvision.transforms.RandomResizedCrop)."""


class ImageFolderData(ImageData):
    """Class folders with pictures of any size and mode: train/ and val/ ones, or one folder that is split at random."""

    name: Literal["imagefolder"]
    folder: str = Field(min_length=1, description="below the raw data folder, as in hymenoptera_data")
    train_folder: str = Field("train", min_length=1, description="the subfolder with the train pictures' class folders")
    validation_folder: str | None = Field(None, min_length=1, description="likewise of pictures to choose by")
    test_folder: str = Field("val", min_length=1, description="likewise of the pictures that the test accuracy is of")
    fractions: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None, min_length=2, max_length=3,
        description="[train, test] or [train, validation, test] of one folder of class folders, instead of subfolders",
    )  # fmt: skip
    split_seed: int = Field(0, ge=0, description="of the split by fractions")
    size: int = Field(ge=1, description="height and width in pixels of what the model is given")
    resize: int | None = Field(None, ge=1, description="the shorter side before the centre crop; null: size")
    keep_aspect: bool = Field(True, description="false: both sides are resized to `resize`")
    random_resized_crop: RandomResizedCrop | None = Field(None, description="of train pictures, instead of the centre crop")
    channels: Literal[1, 3] = 3
    skip_bad: bool = Field(False, description="leave out pictures that cannot be read, and say how many, instead of refusing")

    def pictures(self) -> Pictures:
        return Pictures(self.channels, self.size, self.size, None)

    def has_validation(self) -> bool:
        return bool(self.validation is not None or self.validation_folder or len(self.fractions or []) == 3)


class SyntheticData(ImageData):
    """Made pictures that a model can learn: a fixed pattern a class plus noise. For tests and speed, never for results."""

    name: Literal["synthetic"]
    samples: int = Field(1024, ge=2, description="train pictures; a quarter as many for the test")
    classes: int = Field(10, ge=2, le=1000)
    channels: int = Field(3, ge=1)
    size: int = Field(32, ge=1, description="height and width in pixels")

    def pictures(self) -> Pictures:
        return Pictures(self.channels, self.size, self.size, self.classes)


DataConfig = Annotated[
    CIFAR10Data | DigitsData | FashionMNISTData | ImageFolderData | SyntheticData, Field(discriminator="name")
]
