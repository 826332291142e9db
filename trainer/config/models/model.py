"""`train.model` and `train.init`: what a model can be, and the initialisers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from trainer.config.data import Pictures
from trainer.config.models.convnets import (
    AlexNetModel,
    CNNModel,
    DenseNetModel,
    GoogLeNetModel,
    LeNetModel,
    NiNModel,
    ResNetModel,
    VGG11Model,
)
from trainer.config.models.layers import MANY_CLASSES, Model, halved, linear
from trainer.config.models.library import TimmModel, TorchvisionModel, family
from trainer.config.strict import Strict


class MLPModel(Model):
    """Linear layers with ReLU between them (trainer/models/mlp.py)."""

    name: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1)]] = Field(
        description="width of each hidden layer; [] is softmax regression"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")
    dropouts: list[Annotated[float, Field(ge=0, lt=1)]] | None = Field(
        None, description="likewise, a number for each hidden layer, instead of dropout"
    )

    def parameters(self, given: Pictures) -> int:
        return linear(
            [
                given.channels * given.height * given.width,
                *self.hidden,
                given.classes or MANY_CLASSES,
            ]
        )


class FCNModel(Model):
    """ResNet-18, a 1x1 convolution to the classes, a transposed convolution to the picture's size
    (trainer/models/fcn.py).
    """

    name: Literal["fcn"]
    width: int = Field(
        64, ge=1, description="channels of the first stage; each further stage doubles them"
    )

    def normalised_pixels(self, given: Pictures) -> int:
        return halved(given.height, 5) * halved(given.width, 5)

    def parameters(self, given: Pictures) -> int:
        """How many numbers are trained."""
        width, classes = self.width, given.classes or MANY_CLASSES
        total, before = 49 * given.channels * width + 2 * width, width
        for stage in range(4):
            out = width * 2**stage
            total += (
                9 * before * out
                + 27 * out * out
                + 8 * out
                + (before * out + 2 * out if stage else 0)
            )
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


OwnModel = (
    Annotated[ResNetModel, Tag("resnet")]
    | Annotated[MLPModel, Tag("mlp")]
    | Annotated[LeNetModel, Tag("lenet")]
    | Annotated[CNNModel, Tag("cnn")]
    | Annotated[AlexNetModel, Tag("alexnet")]
    | Annotated[VGG11Model, Tag("vgg11")]
    | Annotated[NiNModel, Tag("nin")]
    | Annotated[GoogLeNetModel, Tag("googlenet")]
    | Annotated[DenseNetModel, Tag("densenet")]
    | Annotated[FCNModel, Tag("fcn")]
)
Library = (
    Annotated[TorchvisionModel, Tag(TorchvisionModel.FAMILY)]
    | Annotated[TimmModel, Tag(TimmModel.FAMILY)]
)
ModelConfig = Annotated[OwnModel | Library, Discriminator(family)]
InitConfig = Annotated[
    DefaultInit | NormalInit | XavierInit | KaimingInit, Field(discriminator="name")
]
