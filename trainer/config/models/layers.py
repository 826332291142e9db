"""What the configurations of all models share: their base, and how many numbers a layer trains.

Imports trainer.config alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from trainer.config.data import Pictures
from trainer.config.strict import Strict

MANY_CLASSES = 1000  # where only the prepared data tell how many there are


class Model(Strict):
    """One model. Its `name` chooses the family."""

    def smallest(self) -> int:
        """Height and width, in pixels, that a picture must have at least, as far as that is known
        without torch.
        """
        return 1

    def normalised_pixels(self, given: Pictures) -> int | None:
        """Pixels of the smallest map that a BatchNorm of the model normalises, for one picture;
        None where it has no such layer, or only torch knows.
        """
        return None

    def parameters(self, given: Pictures) -> int | None:
        """How many numbers are trained; None where only torch can count them."""
        raise NotImplementedError


def conv(in_channels: int, channels: int, kernel_size: int, *, bias: bool = True) -> int:
    """Numbers in a square convolution."""
    return (kernel_size**2 * in_channels + bias) * channels


def halved(size: int, times: int) -> int:
    """Pixels of a side after so many layers of stride 2 that are padded: each rounds up."""
    for _ in range(times):
        size = (size + 1) // 2
    return size


def batch_norm(channels: int) -> int:
    """Numbers in a batch normalisation: a factor and an offset a channel."""
    return 2 * channels


def linear(widths: Sequence[int]) -> int:
    """Numbers in linear layers, one from each width to the next."""
    return sum((before + 1) * after for before, after in pairwise(widths))
