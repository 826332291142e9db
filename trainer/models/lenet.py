"""LeNet and its kin (LeCun et al. 1998): two 5x5 convolutions, each with an activation and 2x2
max-pooling, three linear layers.

With channels [6, 16]: 62,006 parameters for 3x32x32 (the Net of PyTorch's CIFAR-10 tutorial),
44,426 for 1x28x28.
"""

from __future__ import annotations

from torch import nn

from trainer.config.models.convnets import LeNetModel

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def build(
    config: LeNetModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]; H and W at least 16 pixels."""
    first, second = config.channels
    height, width = (((size - 4) // 2 - 4) // 2 for size in in_size)

    def activation(norm: type[nn.Module], channels: int) -> list[nn.Module]:
        return [*([norm(channels)] if config.batch_norm else []), ACTIVATIONS[config.activation]()]

    return nn.Sequential(
        nn.Conv2d(in_channels, first, 5),
        *activation(nn.BatchNorm2d, first),
        nn.MaxPool2d(2),
        nn.Conv2d(first, second, 5),
        *activation(nn.BatchNorm2d, second),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(second * height * width, 120),
        *activation(nn.BatchNorm1d, 120),
        nn.Linear(120, 84),
        *activation(nn.BatchNorm1d, 84),
        nn.Linear(84, num_classes),
    )
