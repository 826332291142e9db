"""The models by name: (config, num_classes, in_channels, in_size) -> a module over float32 [N, C, H, W]."""

from __future__ import annotations

from torch import nn

from trainer.config.model import InitConfig, ModelConfig
from trainer.models import fcn, lenet, mlp, resnet

MODELS = {"fcn": fcn.build, "lenet": lenet.build, "mlp": mlp.build, "resnet": resnet.build}


def build(
    config: ModelConfig, num_classes: int, in_channels: int, in_size: tuple[int, int], init: InitConfig | None = None
) -> nn.Module:
    """A fresh model with weights from torch's default generator. in_size: height and width in pixels."""
    model = MODELS[config.name](config, num_classes, in_channels, in_size)
    if init is not None and init.name != "default":
        initialise(model, init)
    return model


def initialise(model: nn.Module, init: InitConfig) -> None:
    """Draws the weights of linear layers and convolutions again, in the order of the modules; their biases become zero."""
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
