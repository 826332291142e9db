"""ResNets of basic blocks (He et al., arXiv:1512.03385): for small pictures after a 3x3 stem
without pooling (section 4.2).
"""

from __future__ import annotations

from torch import Tensor, nn

from trainer.config.models.convnets import ResNetModel


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the
    shape changes.
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == channels
            else nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(channels),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))
        return result


class ResNet(nn.Module):
    """[N, in_channels, H, W] -> [N, num_classes].

    Each stage after the first halves the picture and doubles the channels.
    """

    def __init__(self, config: ResNetModel, num_classes: int, in_channels: int) -> None:
        super().__init__()
        width = config.width
        if config.stem == "3x3":
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            )
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        stages, channels = [], width
        for stage, count in enumerate(config.blocks):
            out = width * 2**stage
            for block in range(count):
                stages.append(BasicBlock(channels, out, stride=2 if stage and not block else 1))
                channels = out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.fc(self.dropout(self.pool(self.stages(self.stem(x))).flatten(1)))
        return scores


def build(
    config: ResNetModel, num_classes: int, in_channels: int, in_size: tuple[int, int]
) -> nn.Module:
    """ResNet-18 is width 64, blocks [2, 2, 2, 2]: 11,173,962 parameters for 3 channels and 10
    classes.
    """
    return ResNet(config, num_classes, in_channels)
