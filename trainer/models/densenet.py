"""DenseNet: each convolution is given the outputs of all before it in its block (Huang et al.,
arXiv:1608.06993), without bottlenecks, as in Dive into Deep Learning, section 8.7.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config.models.convnets import DenseNetModel


class DenseBlock(nn.Module):
    """[N, in_channels, H, W] -> [N, in_channels + convolutions * growth, H, W]."""

    def __init__(self, in_channels: int, convolutions: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            norm_relu_conv(in_channels + i * growth, growth, kernel_size=3, padding=1)
            for i in range(convolutions)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat((x, layer(x)), dim=1)
        return x


def norm_relu_conv(
    in_channels: int, channels: int, kernel_size: int, padding: int = 0
) -> nn.Sequential:
    """BatchNorm, ReLU, convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, channels, kernel_size, padding=padding),
    )


def build(
    config: DenseNetModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes].

    Between blocks a 1x1 convolution halves the channels, average pooling the picture.

    758,226 parameters for one channel and 10 classes.
    """
    channels = 64
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, 7, stride=2, padding=3),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    for block, convolutions in enumerate(config.convolutions):
        if block:
            layers += [norm_relu_conv(channels, channels // 2, kernel_size=1), nn.AvgPool2d(2)]
            channels //= 2
        layers.append(DenseBlock(channels, convolutions, config.growth))
        channels += convolutions * config.growth
    return nn.Sequential(
        *layers,
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, num_classes),
    )
