"""The augmentations of `train.data.augment`, of whole pieces of an epoch at once: on the device
where the set lives there, else in a DataLoader's worker. Both make the same bits, and those of a
sample do not depend on the pictures beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from trainer import randomness
from trainer.config.augment import (
    Augmentation,
    ColourJitter,
    Crop,
    HorizontalFlip,
    RandomCrop,
    ResizedCrop,
    VerticalFlip,
)

TRIES = 10  # of a random resized crop, as torchvision's
GREY = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow's mode L
# number of the draw -> float64 [n], uniform over [0, 1), on the CPU
Draw = Callable[[int], Tensor]


def apply(
    images: Tensor, index: Tensor, epoch: int, chain: Sequence[Augmentation], seed: int
) -> Tensor:
    """uint8 [n, C, H, W] -> the same shape: every augmentation of `chain` in its order; sample i by
    f(seed, epoch, index[i]) alone.

    index: int64 [n] on the CPU, where all is drawn, so that no device is waited for.
    """
    for place, augmentation in enumerate(chain):
        draw = _draws(randomness.key(seed, randomness.AUGMENT, epoch, place), index)
        images = AUGMENTATIONS[augmentation.name](images, draw, augmentation)
    return images


def _draws(key: int, index: Tensor) -> Draw:
    return lambda number: randomness.uniform(randomness.key(key, number), index)


def take(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[n, C, H, W], and for each picture the rows int64 [n, h] and columns [n, w] to take of it ->
    [n, C, h, w].
    """
    place = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)[:, None]
    taken = images.flatten(2).gather(2, place.expand(-1, images.shape[1], -1))
    return taken.view(*images.shape[:2], rows.shape[1], columns.shape[1])


def flip(images: Tensor, draw: Draw, config: HorizontalFlip | VerticalFlip) -> Tensor:
    """Turns a part of the pictures around."""
    chosen = (draw(0) < config.probability).to(images.device, non_blocking=True)
    return torch.where(
        chosen[:, None, None, None],
        images.flip(3 if config.name == "horizontal_flip" else 2),
        images,
    )


def random_crop(images: Tensor, draw: Draw, config: RandomCrop) -> Tensor:
    """A window of the zero-padded picture."""
    padding, (height, width) = config.padding, images.shape[2:]
    top, left = (
        (draw(i) * (2 * padding + 1)).long().to(images.device, non_blocking=True)[:, None]
        for i in range(2)
    )
    rows, columns = (torch.arange(size, device=images.device) for size in (height, width))
    return take(torch.nn.functional.pad(images, (padding,) * 4), rows + top, columns + left)


def boxes(draw: Draw, width: int, height: int, config: Crop) -> Tensor:
    """int64 [4, n]: left, top, width, height of a piece of each picture: torchvision's
    RandomResizedCrop.get_params, all at once.

    The first of ten tries that lies within the picture, else its centre in the nearest ratio that
    is allowed.
    """
    (smallest, largest), (narrow, wide) = config.scale, config.ratio
    tries = torch.stack([draw(number) for number in range(2 * TRIES)]).view(TRIES, 2, -1)
    area = width * height * (smallest + (largest - smallest) * tries[:, 0])
    ratio = torch.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * tries[:, 1])
    w, h = torch.sqrt(area * ratio).round().long(), torch.sqrt(area / ratio).round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(0)[None]  # of equal ones the first
    found = fits.any(0)
    w = torch.where(found, w.gather(0, first)[0], max(1, min(width, round(height * wide))))
    h = torch.where(found, h.gather(0, first)[0], max(1, min(height, round(width / narrow))))
    left = torch.where(found, (draw(2 * TRIES) * (width - w + 1)).long(), (width - w) // 2)
    top = torch.where(found, (draw(2 * TRIES + 1) * (height - h + 1)).long(), (height - h) // 2)
    return torch.stack((left, top, w, h))


def resized_crop(images: Tensor, draw: Draw, config: ResizedCrop) -> Tensor:
    """A piece of each picture, resized to its size: bilinear, clamped at the piece's edge, as
    torchvision resizes it.

    A piece is never larger than the picture, so that no antialiasing is called for.
    """
    height, width = images.shape[2:]
    left, top, w, h = boxes(draw, width, height, config).to(images.device, non_blocking=True)[
        :, :, None
    ]
    above, below, of_below = _between(top, h, height)
    before, behind, of_behind = _between(left, w, width)
    upper, lower = (
        _blend(
            take(images, rows, before).float(),
            take(images, rows, behind).float(),
            of_behind[:, None, None, :],
        )
        for rows in (above, below)
    )
    return _blend(upper, lower, of_below[:, None, :, None]).round_().to(torch.uint8)


def _between(start: Tensor, length: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """For `size` pixels over start .. start + length (both [n, 1]): the pixels on either side,
    int64 [n, size], and how much the second counts, float32.
    """
    place = (torch.arange(size, device=start.device) + 0.5) * (length / size) - 0.5
    place = place.clamp(min=0)
    before = place.long()
    return start + before, start + torch.minimum(before + 1, length - 1), (place - before).float()


def _blend(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """a * (1 - part) + b * part, in operations that each round by themselves: a fused one gives
    other bits for other lengths.
    """
    return a.mul(1 - part) + b.mul(part)


def colour_jitter(images: Tensor, draw: Draw, config: ColourJitter) -> Tensor:
    """The four changes, each in its turn of a random order that every picture has of its own."""
    changes = [
        change
        for change in (
            (brightness, *_range(config.brightness)),
            (contrast, *_range(config.contrast)),
            (saturation, *_range(config.saturation)),
            (hue, -config.hue, config.hue),
        )
        if change[1] < change[2]
    ]
    order = torch.stack([draw(number) for number in range(len(changes))], 1).argsort(1)
    factors = [
        (low + (high - low) * draw(4 + i)).float() for i, (_, low, high) in enumerate(changes)
    ]
    pixels = images.float()
    for turn in range(len(changes)):
        for i, (change, _, _) in enumerate(changes):
            chosen = (order[:, turn] == i).nonzero()[:, 0]
            if not len(chosen):
                continue
            factor = factors[i][chosen].to(images.device, non_blocking=True)[:, None, None, None]
            chosen = chosen.to(images.device, non_blocking=True)
            pixels[chosen] = change(pixels[chosen], factor)
    return pixels.round_().to(torch.uint8)


def _range(by: float) -> tuple[float, float]:
    return max(0.0, 1 - by), 1 + by


def grey(pixels: Tensor) -> Tensor:
    """float [n, C, H, W] over 0..255 -> [n, 1, H, W]."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = (pixels[:, c : c + 1].mul(weight) for c, weight in enumerate(GREY))
    return red.add_(green).add_(blue)


def brightness(pixels: Tensor, factor: Tensor) -> Tensor:
    return pixels.mul(factor).clamp_(0, 255)


def contrast(pixels: Tensor, factor: Tensor) -> Tensor:
    """About the mean grey, which whole numbers add up to: the same bits whatever is beside."""
    mean = grey(pixels).round_().long().sum((1, 2, 3), keepdim=True) / (
        pixels.shape[2] * pixels.shape[3]
    )
    return _blend(mean.float(), pixels, factor).clamp_(0, 255)


def saturation(pixels: Tensor, factor: Tensor) -> Tensor:
    return _blend(grey(pixels), pixels, factor).clamp_(0, 255)


def hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """RGB through HSV and back, hue turned by `turn` of a circle (Smith 1978; as torchvision's
    adjust_hue).
    """
    red, green, blue = pixels.unbind(1)
    most, least = pixels.amax(1), pixels.amin(1)
    chroma = most - least
    divisor = torch.where(chroma == 0, 1.0, chroma)
    angle = torch.where(
        most == red,
        (green - blue) / divisor,
        torch.where(most == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    ).div_(6)
    angle = torch.where(chroma == 0, 0.0, angle)
    sixths = ((angle + turn[:, 0]) % 1.0) * 6
    channels = []
    # of red, green, blue: value - chroma * clamp(min(k, 4 - k), 0, 1), k = (shift + hue in sixths)
    # mod 6
    for shift in (5, 3, 1):
        k = (sixths + shift) % 6
        channels.append(most - chroma * torch.minimum(k, 4 - k).clamp_(0, 1))
    return torch.stack(channels, 1)


AUGMENTATIONS: dict[str, Callable[[Tensor, Draw, Any], Tensor]] = {
    "horizontal_flip": flip,
    "vertical_flip": flip,
    "random_crop": random_crop,
    "random_resized_crop": resized_crop,
    "colour_jitter": colour_jitter,
}
