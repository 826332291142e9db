"""VGG: blocks of 3x3 convolutions, each halved by max-pooling, then three linear layers (Simonyan &
Zisserman, arXiv:1409.1556).
"""

from __future__ import annotations

from torch import nn

from trainer.config.models.convnets import VGG11Model


def build(
    config: VGG11Model, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]; H and W at least 32. 128,806,154 parameters for 1x224x224,
    width 64 and 10 classes.
    """
    layers: list[nn.Module] = []
    before = in_channels
    for block in config.convolutions():
        for channels in block:
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU()]
            before = channels
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers,
        nn.Flatten(),
        nn.Linear(before * (in_size[0] // 32) * (in_size[1] // 32), 4096),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(4096, num_classes),
    )
