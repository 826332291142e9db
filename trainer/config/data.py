"""`train.data`: one model a data set, and what its pictures are where that is known without reading
them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.config.augment import Augmentation, Crop
from trainer.config.pictures import Pictures as Pictures
from trainer.config.strict import Strict
from trainer.config.tables import AirfoilData, LinearData

Task = Literal["classification", "regression", "segmentation"]


class ImageData(Strict):
    """What every set of small pictures of one size can do, on the device, to whole pieces of an
    epoch.
    """

    task: ClassVar[Task] = "classification"

    random_crop_padding: int = Field(
        0, ge=0, le=16, description="zero pixels added to each side before a random crop"
    )
    random_horizontal_flip: bool = False
    augment: list[Augmentation] = Field(
        [], description="further augmentations of train pictures, in this order"
    )
    mean: list[float] | None = Field(
        None, description="of each channel, of pixels over 0..1; null: the train pictures' own"
    )
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, description="likewise")
    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description=(
            "part of the train pictures that is held out to choose by; the same ones for every seed"
        ),
    )

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError(
                "mean and std go together, one number a channel each, as in mean: [0.5], std: [0.5]"
            )
        return self

    def pictures(self) -> Pictures:
        """What the pictures are, as far as the settings alone tell."""
        raise NotImplementedError

    def wanted(self) -> tuple[int | None, int | None]:
        """How many of the train and of the test pictures are used, the first ones; None: all."""
        return None, None

    def has_validation(self) -> bool:
        """Whether there is a split to choose by."""
        return self.validation is not None

    def prepared_by(self) -> dict[str, Any]:
        """The settings that decide what prepare makes of the same files; the others are of what
        happens to it later.
        """
        return self.model_dump(mode="json", exclude=set(ImageData.model_fields))


class SmallPictures(ImageData):
    """A set of pictures of one small size, whose number is known."""

    resize: int | None = Field(
        None,
        ge=1,
        description="height and width in pixels that the model is given; null: the pictures' own",
    )
    train_samples: int | None = Field(
        None, ge=2, description="only the first so many train pictures; null: all"
    )
    test_samples: int | None = Field(
        None, ge=1, description="only the first so many test pictures; null: all"
    )

    def own(self) -> Pictures:
        """What the pictures are before they are resized."""
        raise NotImplementedError

    def pictures(self) -> Pictures:
        own = self.own()
        return own if self.resize is None else own._replace(height=self.resize, width=self.resize)

    def available(self) -> tuple[int, int]:
        """How many train and test pictures there are."""
        raise NotImplementedError

    def wanted(self) -> tuple[int | None, int | None]:
        return self.train_samples, self.test_samples

    def prepared_by(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude=set(SmallPictures.model_fields))


class DigitsData(SmallPictures):
    """scikit-learn's digits: 1,797 grey pictures of 8x8, 10 classes; a seeded permutation, 1,437
    train / 360 test.
    """

    name: Literal["digits"]

    def own(self) -> Pictures:
        return Pictures(1, 8, 8, 10)

    def available(self) -> tuple[int, int]:
        return 1437, 360


class CIFAR10Data(SmallPictures):
    """CIFAR-10: 50,000 + 10,000 colour pictures of 32x32, 10 classes (Krizhevsky 2009)."""

    name: Literal["cifar10"]

    def own(self) -> Pictures:
        return Pictures(3, 32, 32, 10)

    def available(self) -> tuple[int, int]:
        return 50_000, 10_000


class FashionMNISTData(SmallPictures):
    """Fashion-MNIST: 60,000 + 10,000 grey pictures of 28x28, 10 classes (Xiao et al.,
    arXiv:1708.07747).
    """

    name: Literal["fashion_mnist"]

    def own(self) -> Pictures:
        return Pictures(1, 28, 28, 10)

    def available(self) -> tuple[int, int]:
        return 60_000, 10_000


class RandomResizedCrop(Crop):
    """A random piece of the picture, resized to `size`
    (torchvision.transforms.RandomResizedCrop).
    """


class ImageFolderData(ImageData):
    """Class folders with pictures of any size and mode: train/ and val/ ones, or one folder that is
    split at random.
    """

    name: Literal["imagefolder"]
    folder: str = Field(
        min_length=1, description="below the raw data folder, as in hymenoptera_data"
    )
    train_folder: str = Field(
        "train", min_length=1, description="the subfolder with the train pictures' class folders"
    )
    validation_folder: str | None = Field(
        None, min_length=1, description="likewise of pictures to choose by"
    )
    test_folder: str = Field(
        "val", min_length=1, description="likewise of the pictures that the test accuracy is of"
    )
    fractions: list[Annotated[float, Field(gt=0, lt=1)]] | None = Field(
        None,
        min_length=2,
        max_length=3,
        description=(
            "[train, test] or [train, validation, test] of one folder of class folders, instead of"
            " subfolders"
        ),
    )
    split_seed: int = Field(0, ge=0, description="of the split by fractions")
    size: int = Field(ge=1, description="height and width in pixels of what the model is given")
    resize: int | None = Field(
        None, ge=1, description="the shorter side before the centre crop; null: size"
    )
    keep_aspect: bool = Field(default=True, description="false: both sides are resized to `resize`")
    random_resized_crop: RandomResizedCrop | None = Field(
        None, description="of train pictures, instead of the centre crop"
    )
    channels: Literal[1, 3] = 3
    skip_bad: bool = Field(
        default=False,
        description="leave out pictures that cannot be read, and say how many, instead of refusing",
    )

    def pictures(self) -> Pictures:
        return Pictures(self.channels, self.size, self.size, None)

    def has_validation(self) -> bool:
        return bool(
            self.validation is not None or self.validation_folder or len(self.fractions or []) == 3
        )

    def prepared_by(self) -> dict[str, Any]:
        settings = super().prepared_by()
        crop = settings.pop("random_resized_crop")
        return {**settings, "encoded": crop is not None}


VOC_CLASSES = [
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "potted plant",
    "sheep",
    "sofa",
    "train",
    "tv/monitor",
]


class VOCData(ImageData):
    """Segmentation in Pascal VOC's layout: lists, pictures, masks as palette indices or in VOC's
    colours; 255 has no class.
    """

    task: ClassVar[Task] = "segmentation"

    name: Literal["voc"]
    folder: str = Field("VOCdevkit/VOC2012", min_length=1, description="below the raw data folder")
    classes: list[str] | None = Field(
        None, min_length=2, max_length=255, description="their names; null: VOC's 21"
    )
    crop: list[Annotated[int, Field(ge=1)]] = Field(
        [320, 480],
        min_length=2,
        max_length=2,
        description=(
            "height and width of a random piece of picture and mask alike (test: the middle);"
            " smaller ones are left out"
        ),
    )

    def names(self) -> list[str]:
        """The classes, by the number that a mask has for each."""
        return self.classes or VOC_CLASSES

    def pictures(self) -> Pictures:
        return Pictures(3, self.crop[0], self.crop[1], len(self.names()))


class SyntheticData(SmallPictures):
    """Made pictures that a model can learn: a fixed pattern a class plus noise.

    For tests and speed, never for results.
    """

    name: Literal["synthetic"]
    samples: int = Field(1024, ge=2, description="train pictures; a quarter as many for the test")
    classes: int = Field(10, ge=2, le=1000)
    channels: int = Field(3, ge=1)
    size: int = Field(32, ge=1, description="height and width in pixels")

    def own(self) -> Pictures:
        return Pictures(self.channels, self.size, self.size, self.classes)

    def available(self) -> tuple[int, int]:
        return self.samples, max(1, self.samples // 4)


DataConfig = Annotated[
    AirfoilData
    | CIFAR10Data
    | DigitsData
    | FashionMNISTData
    | ImageFolderData
    | LinearData
    | SyntheticData
    | VOCData,
    Field(discriminator="name"),
]
