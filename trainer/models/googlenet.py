"""GoogLeNet: Inception blocks, whose four paths are put side by side (Szegedy et al.,
arXiv:1409.4842), without the side losses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config.models.convnets import INCEPTIONS, GoogLeNetModel, Inception


class InceptionBlock(nn.Module):
    """[N, in_channels, H, W] -> [N, channels, H, W]: 1x1; 1x1 and 3x3; 1x1 and 5x5; 3x3 max-pooling
    and 1x1; ReLU after each.
    """

    def __init__(self, in_channels: int, widths: Inception) -> None:
        super().__init__()
        one, (before_three, three), (before_five, five), after_pool = widths
        self.paths = nn.ModuleList(
            [
                nn.Sequential(*conv_relu(in_channels, one, 1)),
                nn.Sequential(
                    *conv_relu(in_channels, before_three, 1), *conv_relu(before_three, three, 3)
                ),
                nn.Sequential(
                    *conv_relu(in_channels, before_five, 1), *conv_relu(before_five, five, 5)
                ),
                nn.Sequential(
                    nn.MaxPool2d(3, stride=1, padding=1), *conv_relu(in_channels, after_pool, 1)
                ),
            ]
        )
        self.channels = one + three + five + after_pool

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self.paths], dim=1)


def conv_relu(in_channels: int, channels: int, kernel_size: int) -> list[nn.Module]:
    """A convolution that keeps the picture's size, and ReLU."""
    return [nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2), nn.ReLU()]


def build(
    config: GoogLeNetModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]. 5,977,530 parameters for one channel and 10 classes."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, 64, 7, stride=2, padding=3),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
        *conv_relu(64, 64, 1),
        *conv_relu(64, 192, 3),
    ]
    channels = 192
    for stage in INCEPTIONS:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
        for widths in stage:
            block = InceptionBlock(channels, widths)
            layers.append(block)
            channels = block.channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)
    )
