"""The fully convolutional network: a ResNet-18 without its last two layers, a 1x1 convolution to
the classes, one transposed convolution back to the picture's size (Long, Shelhamer, Darrell,
arXiv:1411.4038, FCN-32s).

The weights of the ResNet are named as torchvision's resnet18 names them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config.models.model import FCNModel

STRIDE = 32  # pixels of the picture that become one before the transposed convolution


class Block(nn.Module):
    """torchvision's BasicBlock: two 3x3 convolutions beside a shortcut (He et al.,
    arXiv:1512.03385).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = (
            None
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + shortcut)


class FCN(nn.Module):
    """[N, in_channels, H, W] -> [N, num_classes, H, W], H and W multiples of 32."""

    def __init__(self, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.head = nn.Conv2d(8 * width, num_classes, 1)
        self.upsample = nn.ConvTranspose2d(
            num_classes, num_classes, 2 * STRIDE, stride=STRIDE, padding=STRIDE // 2
        )
        with torch.no_grad():
            self.upsample.weight.copy_(bilinear(num_classes, 2 * STRIDE))
            self.upsample.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.upsample(self.head(self.layer4(self.layer3(self.layer2(self.layer1(x))))))


def bilinear(channels: int, size: int) -> Tensor:
    """float32 [channels, channels, size, size]: the kernel by which a transposed convolution of
    stride size / 2 upsamples each channel by itself, bilinearly. size is even.
    """
    place = torch.arange(size)
    line = 1 - (place - (size - 1) / 2).abs() / (size / 2)
    kernel = torch.zeros(channels, channels, size, size)
    kernel[range(channels), range(channels)] = line[:, None] * line[None, :]
    return kernel


def build(
    config: FCNModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """Width 64 and 21 classes: 12,993,642 parameters."""
    return FCN(config.width, num_classes, in_channels)
