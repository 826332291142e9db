"""Pixels -> what the model is given: the last thing that happens to a picture, in training, in
evaluations and in predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Normalise(nn.Module):
    """uint8 [N, C, H, W] over 0..255 -> (pixel / 255 - mean) / std, float32, at `size` (height,
    width; None: their own) and in a memory format.

    A module, so that an exported model can begin with it. mean, std: one number a channel, of
    pixels over 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None,
        memory_format: torch.memory_format,
    ) -> None:
        super().__init__()
        self.size, self.memory_format = size, memory_format
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        images = images.float().div_(255)
        # here, since larger ones would not all fit the device; as Pillow resizes
        if self.size and images.shape[2:] != self.size:
            images = functional.interpolate(images, self.size, mode="bilinear", antialias=True)
        return images.sub_(self.mean).div_(self.std).contiguous(memory_format=self.memory_format)
