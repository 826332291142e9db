"""`train.model` and `train.init`: one model a family, and the initialisers."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field

from trainer.config.data import Pictures
from trainer.config.strict import Strict

MANY_CLASSES = 1000  # where only the prepared data tell how many there are


class ResNetModel(Strict):
    """A ResNet of basic blocks with a 3x3 stem (trainer/models/resnet.py)."""

    name: Literal["resnet"]
    width: int = Field(64, ge=1, description="channels of the first stage; each further stage doubles them")
    blocks: list[Annotated[int, Field(ge=1)]] = Field([2, 2, 2, 2], min_length=1, description="basic blocks per stage")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last layer")

    def parameters(self, given: Pictures) -> int:
        """How many numbers are trained."""
        total, channels = 9 * given.channels * self.width + 2 * self.width, self.width
        for stage, count in enumerate(self.blocks):
            out = self.width * 2**stage
            for block in range(count):
                total += 9 * channels * out + 9 * out * out + 4 * out
                if channels != out or (stage and not block):
                    total += channels * out + 2 * out
                channels = out
        return total + (channels + 1) * (given.classes or MANY_CLASSES)


class MLPModel(Strict):
    """Linear layers with ReLU between them (trainer/models/mlp.py)."""

    name: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1)]] = Field(description="width of each hidden layer; [] is softmax regression")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")

    def parameters(self, given: Pictures) -> int:
        """How many numbers are trained."""
        widths = [given.channels * given.height * given.width, *self.hidden, given.classes or MANY_CLASSES]
        return sum((before + 1) * after for before, after in pairwise(widths))


class LeNetModel(Strict):
    """Two 5x5 convolutions with pooling and three linear layers (trainer/models/lenet.py)."""

    name: Literal["lenet"]
    channels: list[Annotated[int, Field(ge=1)]] = Field([6, 16], min_length=2, max_length=2, description="of the convolutions")
    activation: Literal["relu", "sigmoid"] = "relu"

    def parameters(self, given: Pictures) -> int:
        """How many numbers are trained."""
        first, second = self.channels
        height, width = (max(1, ((size - 4) // 2 - 4) // 2) for size in given[1:3])
        linear = pairwise([second * height * width, 120, 84, given.classes or MANY_CLASSES])
        return (25 * given.channels + 1) * first + (25 * first + 1) * second + sum((a + 1) * b for a, b in linear)


class FCNModel(Strict):
    """ResNet-18, a 1x1 convolution to the classes, a transposed convolution to the picture's size (trainer/models/fcn.py)."""

    name: Literal["fcn"]
    width: int = Field(64, ge=1, description="channels of the first stage; each further stage doubles them")

    def parameters(self, given: Pictures) -> int:
        """How many numbers are trained."""
        width, classes = self.width, given.classes or MANY_CLASSES
        total, before = 49 * given.channels * width + 2 * width, width
        for stage in range(4):
            out = width * 2**stage
            total += 9 * before * out + 27 * out * out + 8 * out + (before * out + 2 * out if stage else 0)
            before = out
        return total + (before + 1) * classes + 4096 * classes * classes + classes


class DefaultInit(Strict):
    """torch's own initialisation of each layer."""

    name: Literal["default"]


class NormalInit(Strict):
    """Weights of linear layers and convolutions from N(0, std); their biases zero."""

    name: Literal["normal"]
    std: float = Field(gt=0)


class XavierInit(Strict):
    """Weights uniform by Glorot & Bengio (2010); biases zero."""

    name: Literal["xavier_uniform"]


class KaimingInit(Strict):
    """Weights normal by He et al. (arXiv:1502.01852), fan-out, for ReLU; biases zero."""

    name: Literal["kaiming_normal"]


ModelConfig = Annotated[ResNetModel | MLPModel | LeNetModel | FCNModel, Field(discriminator="name")]
InitConfig = Annotated[DefaultInit | NormalInit | XavierInit | KaimingInit, Field(discriminator="name")]
