"""The convolutional networks of `train.model`, one model a family; trainer/models has the networks
themselves.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.data import Pictures
from trainer.config.models.layers import MANY_CLASSES, Model, batch_norm, conv, halved, linear

Positive = Annotated[int, Field(ge=1)]


class ResNetModel(Model):
    """A ResNet of basic blocks (trainer/models/resnet.py)."""

    name: Literal["resnet"]
    width: int = Field(
        64, ge=1, description="channels of the first stage; each further stage doubles them"
    )
    blocks: list[Positive] = Field([2, 2, 2, 2], min_length=1, description="basic blocks per stage")
    stem: Literal["3x3", "7x7"] = Field(
        "3x3", description="3x3: for small pictures; 7x7: stride 2 and max-pooling after it"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last layer")

    def normalised_pixels(self, given: Pictures) -> int:
        times = len(self.blocks) - 1 + (0 if self.stem == "3x3" else 2)
        return halved(given.height, times) * halved(given.width, times)

    def parameters(self, given: Pictures) -> int:
        total = conv(
            given.channels, self.width, 3 if self.stem == "3x3" else 7, bias=False
        ) + batch_norm(self.width)
        channels = self.width
        for stage, count in enumerate(self.blocks):
            out = self.width * 2**stage
            for block in range(count):
                total += (
                    conv(channels, out, 3, bias=False)
                    + conv(out, out, 3, bias=False)
                    + 2 * batch_norm(out)
                )
                if channels != out or (stage and not block):
                    total += conv(channels, out, 1, bias=False) + batch_norm(out)
                channels = out
        return total + linear([channels, given.classes or MANY_CLASSES])


class LeNetModel(Model):
    """Two 5x5 convolutions with pooling and three linear layers (trainer/models/lenet.py)."""

    name: Literal["lenet"]
    channels: list[Positive] = Field(
        [6, 16], min_length=2, max_length=2, description="of the convolutions"
    )
    activation: Literal["relu", "sigmoid"] = "relu"
    batch_norm: bool = Field(
        default=False, description="batch normalisation before each activation"
    )

    def smallest(self) -> int:
        return 16

    def normalised_pixels(self, given: Pictures) -> int | None:
        return 1 if self.batch_norm else None  # between the linear layers

    def parameters(self, given: Pictures) -> int:
        first, second = self.channels
        height, width = (max(1, ((size - 4) // 2 - 4) // 2) for size in given[1:3])
        norms = sum(batch_norm(c) for c in (first, second, 120, 84)) if self.batch_norm else 0
        widths = [second * height * width, 120, 84, given.classes or MANY_CLASSES]
        return conv(given.channels, first, 5) + conv(first, second, 5) + linear(widths) + norms


class CNNModel(Model):
    """Convolutions without padding, each with ReLU and 2x2 max-pooling, then linear layers
    (trainer/models/cnn.py).
    """

    name: Literal["cnn"]
    channels: list[Positive] = Field(min_length=1, description="of each convolution")
    kernel_size: int = Field(3, ge=1)
    hidden: list[Positive] = Field(description="width of each hidden linear layer")

    def side(self, size: int) -> int:
        """What `size` pixels become before the linear layers; below 1: too few."""
        for _ in self.channels:
            size = (size - self.kernel_size + 1) // 2
        return size

    def smallest(self) -> int:
        size = 1
        for _ in self.channels:
            size = 2 * size + self.kernel_size - 1
        return size

    def parameters(self, given: Pictures) -> int:
        before = [given.channels, *self.channels[:-1]]
        convolutions = sum(
            conv(a, b, self.kernel_size) for a, b in zip(before, self.channels, strict=True)
        )
        flat = self.channels[-1] * max(1, self.side(given.height)) * max(1, self.side(given.width))
        return convolutions + linear([flat, *self.hidden, given.classes or MANY_CLASSES])


class AlexNetModel(Model):
    """AlexNet as one stack of layers (trainer/models/alexnet.py)."""

    name: Literal["alexnet"]
    dropout: float = Field(0.5, ge=0, lt=1, description="after each hidden linear layer")

    def smallest(self) -> int:
        return 67

    def parameters(self, given: Pictures) -> int:
        convolutions = (
            conv(given.channels, 96, 11)
            + conv(96, 256, 5)
            + conv(256, 384, 3)
            + conv(384, 384, 3)
            + conv(384, 256, 3)
        )
        height, width = (
            max(1, pooled(pooled(pooled((size - 7) // 4)))) for size in (given.height, given.width)
        )
        return convolutions + linear(
            [256 * height * width, 4096, 4096, given.classes or MANY_CLASSES]
        )


class VGG11Model(Model):
    """VGG with eleven layers (trainer/models/vgg.py)."""

    name: Literal["vgg11"]
    width: int = Field(
        64,
        ge=1,
        description="channels of the first block; the others have 2, 4, 8 and 8 times as many",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="after each hidden linear layer")

    def convolutions(self) -> list[list[int]]:
        """Channels of each convolution, a list a block."""
        return [
            [self.width * factor] * count
            for factor, count in ((1, 1), (2, 1), (4, 2), (8, 2), (8, 2))
        ]

    def smallest(self) -> int:
        return 32

    def parameters(self, given: Pictures) -> int:
        total, before = 0, given.channels
        for channels in (channels for block in self.convolutions() for channels in block):
            total, before = total + conv(before, channels, 3), channels
        flat = before * max(1, given.height // 32) * max(1, given.width // 32)
        return total + linear([flat, 4096, 4096, given.classes or MANY_CLASSES])


class NiNModel(Model):
    """Network in network (trainer/models/nin.py)."""

    name: Literal["nin"]
    dropout: float = Field(0.5, ge=0, lt=1, description="before the last block")

    def smallest(self) -> int:
        return 67

    def parameters(self, given: Pictures) -> int:
        classes, total, before = given.classes or MANY_CLASSES, 0, given.channels
        for channels, kernel_size in ((96, 11), (256, 5), (384, 3), (classes, 3)):
            total, before = (
                total + conv(before, channels, kernel_size) + 2 * conv(channels, channels, 1),
                channels,
            )
        return total


# channels of an Inception block's paths: 1x1; 1x1 and 3x3; 1x1 and 5x5; 1x1 after pooling
Inception = tuple[int, tuple[int, int], tuple[int, int], int]
INCEPTIONS: tuple[tuple[Inception, ...], ...] = (  # a stage each, max-pooling between them
    ((64, (96, 128), (16, 32), 32), (128, (128, 192), (32, 96), 64)),
    (
        (192, (96, 208), (16, 48), 64),
        (160, (112, 224), (24, 64), 64),
        (128, (128, 256), (24, 64), 64),
        (112, (144, 288), (32, 64), 64),
        (256, (160, 320), (32, 128), 128),
    ),
    ((256, (160, 320), (32, 128), 128), (384, (192, 384), (48, 128), 128)),
)


class GoogLeNetModel(Model):
    """GoogLeNet: Inception blocks (trainer/models/googlenet.py)."""

    name: Literal["googlenet"]

    def parameters(self, given: Pictures) -> int:
        total, before = conv(given.channels, 64, 7) + conv(64, 64, 1) + conv(64, 192, 3), 192
        for one, three, five, after_pool in (block for stage in INCEPTIONS for block in stage):
            total += conv(before, one, 1) + conv(before, after_pool, 1)
            total += (
                conv(before, three[0], 1)
                + conv(three[0], three[1], 3)
                + conv(before, five[0], 1)
                + conv(five[0], five[1], 5)
            )
            before = one + three[1] + five[1] + after_pool
        return total + linear([before, given.classes or MANY_CLASSES])


class DenseNetModel(Model):
    """Dense blocks after a ResNet's stem (trainer/models/densenet.py)."""

    name: Literal["densenet"]
    growth: int = Field(32, ge=1, description="channels that each convolution adds")
    convolutions: list[Positive] = Field(
        [4, 4, 4, 4], min_length=1, description="of each dense block"
    )

    def smallest(self) -> int:
        return (2 << len(self.convolutions)) - 3

    def normalised_pixels(self, given: Pictures) -> int:
        pools = len(self.convolutions) - 1
        height, width = (halved(size, 2) >> pools for size in (given.height, given.width))
        return height * width

    def parameters(self, given: Pictures) -> int:
        channels = 64
        total = conv(given.channels, channels, 7) + batch_norm(channels)
        for block, count in enumerate(self.convolutions):
            if block:
                total += batch_norm(channels) + conv(channels, channels // 2, 1)
                channels //= 2
            for _ in range(count):
                total += batch_norm(channels) + conv(channels, self.growth, 3)
                channels += self.growth
        return total + batch_norm(channels) + linear([channels, given.classes or MANY_CLASSES])


def pooled(size: int) -> int:
    """Pixels after 3x3 max-pooling with stride 2."""
    return (size - 1) // 2
