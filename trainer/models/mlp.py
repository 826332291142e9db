"""The multilayer perceptron: linear layers with ReLU between them."""

from __future__ import annotations

from torch import nn

from trainer.config.models.model import MLPModel


def build(
    config: MLPModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = in_channels * in_size[0] * in_size[1]
    dropouts = (
        config.dropouts if config.dropouts is not None else [config.dropout] * len(config.hidden)
    )
    for hidden, dropout in zip(config.hidden, dropouts, strict=True):
        layers += [nn.Linear(width, hidden), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
