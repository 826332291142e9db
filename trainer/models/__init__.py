"""The models by name: (config, num_classes, in_channels, in_size) -> a module over float32 [N, C,
H, W].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trainer.config.models.library import family
from trainer.config.models.model import InitConfig, ModelConfig
from trainer.models import (
    alexnet,
    cnn,
    densenet,
    fcn,
    googlenet,
    lenet,
    library,
    mlp,
    nin,
    resnet,
    vgg,
)

MODELS = {
    "alexnet": alexnet.build,
    "cnn": cnn.build,
    "densenet": densenet.build,
    "fcn": fcn.build,
    "googlenet": googlenet.build,
    "lenet": lenet.build,
    "mlp": mlp.build,
    "nin": nin.build,
    "resnet": resnet.build,
    "vgg11": vgg.build,
    "torchvision/NAME": library.torchvision,
    "timm/NAME": library.timm,
}


def build(
    config: ModelConfig,
    num_classes: int,
    in_channels: int,
    in_size: tuple[int, int],
    init: InitConfig | None = None,
) -> nn.Module:
    """A fresh model with weights from torch's default generator. in_size: height and width in
    pixels.

    Raises ValueError where the model takes no such pictures.
    """
    if min(in_size) < config.smallest():
        least = config.smallest()
        raise ValueError(
            f"{config.name} takes pictures of at least {least}x{least} pixels, these have"
            f" {in_size[0]}x{in_size[1]}"
        )
    model = MODELS[family(config)](config, num_classes, in_channels, in_size)
    if init is not None and init.name != "default":
        initialise(model, init)
    return model


class EmptyOnMeta(TorchFunctionMode):
    """Within it torch.empty, from which layers make their weights, takes no memory.

    Not torch.device("meta"): it would also take the numbers that a model is made from, as RegNet's
    widths.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(
            *args, **{**(kwargs or {}), "device": "meta"} if func is torch.empty else kwargs or {}
        )


def build_on_meta(
    config: ModelConfig, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """The model without weights, on the meta device: its shapes alone.

    Raises ValueError as `build` does.
    """
    with EmptyOnMeta():
        return build(config, num_classes, in_channels, in_size).to("meta")


def initialise(model: nn.Module, init: InitConfig) -> None:
    """Draws the weights of linear layers and convolutions again, in the order of the modules; their
    biases become zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            if init.name == "normal":
                nn.init.normal_(module.weight, std=init.std)
            elif init.name == "xavier_uniform":
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
