"""Network in network: a convolution and two 1x1 convolutions a block, the last block's channels
being the classes (Lin, Chen, Yan, arXiv:1312.4400; sizes from Dive into Deep Learning, section
8.3).
"""

from __future__ import annotations

from torch import nn

from trainer.config.models.convnets import NiNModel


def block(
    in_channels: int, channels: int, kernel_size: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """A convolution and two 1x1 ones, ReLU after each."""
    return [
        nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=padding),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
    ]


def build(
    config: NiNModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]; H and W at least 67. 1,992,166 parameters for one channel
    and 10 classes.
    """
    return nn.Sequential(
        *block(in_channels, 96, 11, stride=4),
        nn.MaxPool2d(3, stride=2),
        *block(96, 256, 5, padding=2),
        nn.MaxPool2d(3, stride=2),
        *block(256, 384, 3, padding=1),
        nn.MaxPool2d(3, stride=2),
        nn.Dropout(config.dropout),
        *block(384, num_classes, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
