"""AlexNet as one stack of layers, without its halves and local normalisation (Krizhevsky,
Sutskever, Hinton 2012; Dive into Deep Learning, section 8.1).
"""

from __future__ import annotations

from torch import nn

from trainer.config.models.convnets import AlexNetModel, pooled


def build(
    config: AlexNetModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """[N, C, H, W] -> [N, num_classes]; H and W at least 67. 46,764,746 parameters for 1x224x224
    and 10 classes.
    """
    height, width = (pooled(pooled(pooled((size - 7) // 4))) for size in in_size)
    return nn.Sequential(
        nn.Conv2d(in_channels, 96, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(96, 256, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(256 * height * width, 4096),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(config.dropout),
        nn.Linear(4096, num_classes),
    )
