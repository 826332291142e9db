"""Mixup and cutmix: pictures of a batch laid over each other, and their labels by as much."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from trainer import randomness
from trainer.config.augment import Mixup
from trainer.config.run import TrainConfig


def mixed(
    images: Tensor, labels: Tensor, config: TrainConfig, step: int, chunk: int
) -> tuple[Tensor, list[Tensor], list[float]]:
    """(pictures float32 [n, C, H, W] mixed with the sample before, the labels int64 [n] of either,
    how much these count), by f(seed, step, chunk): a chunk's samples are the same for any number of
    ranks, in an order that makes that partner a random one.

    One weight for the whole chunk and the partner's place are those of
    torchvision.transforms.v2.MixUp and CutMix.
    """
    if config.mix is None:
        return images, [labels], [1.0]
    # its stream is frozen
    drawn = np.random.RandomState(
        randomness.key(config.seed, randomness.MIX, step, chunk) & 0xFFFFFFFF
    )
    part, others = float(drawn.beta(config.mix.alpha, config.mix.alpha)), images.roll(1, 0)
    if isinstance(config.mix, Mixup):
        images = images * part + others * (1 - part)
    else:
        part, inside = box(part, *images.shape[2:], drawn)
        images = images.clone()
        images[inside] = others[inside]
    return images, [labels, labels.roll(1, 0)], [part, 1 - part]


def box(
    part: float, height: int, width: int, drawn: np.random.RandomState
) -> tuple[float, tuple[slice, ...]]:
    """(what is left of a picture, the box that is cut out): about 1 - part of its area around a
    random pixel, cut at the edge.
    """
    row, column = drawn.randint(height), drawn.randint(width)
    half = 0.5 * math.sqrt(1 - part)
    top, bottom = max(0, int(row - half * height)), min(height, int(row + half * height))
    left, right = max(0, int(column - half * width)), min(width, int(column + half * width))
    left_over = 1 - (bottom - top) * (right - left) / (height * width)
    return left_over, (slice(None), slice(None), slice(top, bottom), slice(left, right))


def weighted(losses: list[Tensor], parts: list[float]) -> Tensor:
    """The losses of each kind of labels, float32 [], by how much these count."""
    return losses[0] if len(losses) == 1 else losses[0] * parts[0] + losses[1] * parts[1]
