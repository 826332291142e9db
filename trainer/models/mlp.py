"""The multilayer perceptron: linear layers with ReLU between them."""

from __future__ import annotations

from torch import nn

from trainer.config.model import MLPModel


def build(config: MLPModel, num_classes: int, in_channels: int, in_size: tuple[int, int]) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_channels * in_size[0] * in_size[1]
    for hidden in config.hidden:
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
