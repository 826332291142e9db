"""The models by name: (config, num_classes, in_channels, in_size) -> a module over float32 [N, C, H, W]."""

from __future__ import annotations

from torch import nn

from trainer.config.run import ModelConfig
from trainer.models import mlp, resnet

MODELS = {"mlp": mlp.build, "resnet": resnet.build}


def build(config: ModelConfig, num_classes: int, in_channels: int, in_size: tuple[int, int]) -> nn.Module:
    """A fresh model with weights from torch's default generator. in_size: height and width in pixels."""
    return MODELS[config.name](config, num_classes, in_channels, in_size)
