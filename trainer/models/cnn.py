"""A plain convolutional network: convolutions without padding, each with ReLU and 2x2 max-pooling,
then linear layers.
"""

from __future__ import annotations

from torch import nn

from trainer.config.models.convnets import CNNModel


def build(
    config: CNNModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes].

    Channels [6, 16], hidden [120, 84]: 81,302 parameters for 3x32x32 and 10 classes.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for channels in config.channels:
        layers += [nn.Conv2d(before, channels, config.kernel_size), nn.ReLU(), nn.MaxPool2d(2)]
        before = channels
    layers.append(nn.Flatten())
    before *= config.side(in_size[0]) * config.side(in_size[1])
    for width in config.hidden:
        layers += [nn.Linear(before, width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, num_classes))
