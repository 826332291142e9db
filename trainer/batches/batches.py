"""The batches of a run: a pure function of the step, made in pieces that pay.

Here of pictures that live on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from trainer import randomness
from trainer.batches import augment as augmentations
from trainer.batches.normalise import Normalise
from trainer.config import steps as counting
from trainer.config.data import ImageData
from trainer.prepared.arrays import Encoded, Prepared, Split

# smaller pieces pay more for the calls than for the pictures (at batch 4 several times more)
AUGMENT_SAMPLES = 512
AUGMENT_BYTES = 2**24
DECODE_SAMPLES = 32  # decoding one picture outweighs all calls


class MicroBatch(NamedTuple):
    """What a rank holds at once. images: float32 [n, C, H, W], labels: int64 [n], on the device.

    chunk: number within the step, the same whatever the world size; None where the rank has no
    samples in this round and takes part with a picture at weight zero. global_samples: samples of
    the whole step, over all ranks.
    """

    images: Tensor
    labels: Tensor
    chunk: int | None
    global_samples: int


@dataclass(frozen=True)
class Step:
    """What a rank computes of one step. number: 0 is the first."""

    number: int
    micro_batches: list[MicroBatch]


@dataclass(frozen=True)
class Sampling:
    """How an epoch is cut into the steps and micro-batches of a rank."""

    seed: int
    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int


class Plan:
    """Which samples a rank takes in each step: the same in every process that asks.

    A step's samples are consecutive in the epoch's order. They are cut into chunks of at most
    `micro_batch_size`; chunk c is taken by rank c % world_size in round c // world_size. So the
    chunks are the same for every world size, and rank 0 always has samples. The last step of an
    epoch may be smaller; no sample is dropped or seen twice. picture_bytes: of a picture that is
    resized on the device, there.
    """

    def __init__(self, split: Split, sampling: Sampling, *, picture_bytes: int = 0) -> None:
        self.samples = len(split)
        self.chosen = split.chosen
        self.seed = sampling.seed
        self.rank = sampling.rank
        self.world_size = sampling.world_size
        self.global_batch_size = sampling.global_batch_size
        self.micro_batch_size = sampling.micro_batch_size
        self.steps_per_epoch = counting.per_epoch(self.samples, self.global_batch_size)
        if isinstance(split.images, Encoded):
            at_once = DECODE_SAMPLES
        else:
            at_once = min(
                AUGMENT_SAMPLES, AUGMENT_BYTES // max(split.images[0].nbytes, picture_bytes)
            )
        self.steps_at_once = max(1, at_once // -(-self.global_batch_size // self.world_size))
        self.epoch, self.order = -1, torch.empty(0)

    def together(self, first: int) -> range:
        """The steps from `first` on that are made in one go; all of one epoch."""
        left = self.steps_per_epoch - first % self.steps_per_epoch
        return range(first, first + min(self.steps_at_once, left))

    def pieces(self, step: int) -> list[tuple[int | None, int, int, int]]:
        """(chunk, start, stop, global_samples) of each of this rank's rounds; start and stop are
        places in the epoch's order.
        """
        begin = step % self.steps_per_epoch * self.global_batch_size
        samples = min(self.global_batch_size, self.samples - begin)
        chunks = counting.cut(samples, self.micro_batch_size)
        pieces: list[tuple[int | None, int, int, int]] = []
        for round_ in range(-(-len(chunks) // self.world_size)):
            chunk = round_ * self.world_size + self.rank
            if chunk < len(chunks):
                pieces.append((chunk, begin + chunks[chunk][0], begin + chunks[chunk][1], samples))
            else:
                pieces.append((None, begin, begin + 1, samples))
        return pieces

    def index(self, steps: range) -> tuple[int, Tensor]:
        """(epoch, the numbers of all samples of all pieces of `steps`, int64 on the CPU)."""
        epoch = steps.start // self.steps_per_epoch
        if epoch != self.epoch:
            self.epoch, self.order = epoch, randomness.order(self.seed, epoch, self.samples)
            if self.chosen is not None:
                self.order = torch.from_numpy(self.chosen)[self.order]
        return epoch, torch.cat(
            [self.order[start:stop] for step in steps for _, start, stop, _ in self.pieces(step)]
        )


class Batches:
    """One rank's micro-batches of every step."""

    where = "live on the device"

    def __init__(
        self,
        data: Prepared,
        config: ImageData,
        *,
        sampling: Sampling,
        device: torch.device,
        channels_last: bool = False,
    ) -> None:
        self.config, self.device = config, device
        given = config.pictures()
        self.plan = Plan(
            data.splits["train"],
            sampling,
            picture_bytes=given.channels * given.height * given.width,
        )
        self.place(data)
        self.steps_per_epoch = self.plan.steps_per_epoch
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        own = isinstance(config, ImageData) and config.mean and config.std
        mean, std = (config.mean, config.std) if own else (data.mean, data.std)
        self.pixels = Normalise(mean, std, (given.height, given.width), self.format).to(device)
        self.ready: dict[int, list[MicroBatch]] = {}

    def place(self, data: Prepared) -> None:
        """Brings the pictures to where they are cut out."""
        split = data.splits["train"]
        # uint8; on a CPU the mapped pages, shared between ranks
        self.images = torch.from_numpy(split.images).to(self.device)
        self.labels = torch.from_numpy(split.labels).to(self.device)

    def at(self, step: int) -> list[MicroBatch]:
        """The micro-batches of step `step` (0 is the first), one for each round; all ranks have the
        same number of rounds.
        """
        if step not in self.ready:
            self.ready = self._make(self.plan.together(step))
        return self.ready[step]

    def _make(self, steps: range) -> dict[int, list[MicroBatch]]:
        images, labels = self.pictures(steps)
        images = self.normalise(images)
        made: dict[int, list[MicroBatch]] = {}
        position = 0
        for step in steps:
            made[step] = []
            for chunk, start, stop, global_samples in self.plan.pieces(step):
                here = slice(position, position + stop - start)
                # memory of its own: where a slice begins depends on the ranks and on where the run
                # was continued, and MKL adds in another order where that is no multiple of 16 bytes
                made[step].append(
                    MicroBatch(images[here].clone(), labels[here], chunk, global_samples)
                )
                position += stop - start
        return made

    def pictures(self, steps: range) -> tuple[Tensor, Tensor]:
        """All pictures of some steps, augmented, uint8 [n, C, H, W], and their labels, on the
        device.
        """
        epoch, index = self.plan.index(steps)
        here = index.to(self.device, non_blocking=True)
        images = augment(self.images[here], here, epoch, self.config, self.plan.seed)
        return (
            augmentations.apply(images, index, epoch, self.config.augment, self.plan.seed),
            self.labels[here],
        )

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 over 0..255 -> what the model is given, float32."""
        return self.pixels(images)

    def for_the_eye(self, images: Tensor) -> Tensor:
        """What `normalise` made, as uint8 over 0..255 again, on the CPU."""
        return (
            ((images * self.pixels.std + self.pixels.mean) * 255)
            .round()
            .clamp(0, 255)
            .to("cpu", torch.uint8)
        )


def augment(images: Tensor, index: Tensor, epoch: int, config: ImageData, seed: int) -> Tensor:
    """uint8 [n, C, H, W] -> the same shape, cropped and flipped; sample i by f(seed, epoch,
    index[i]) alone.

    Row and column of every pixel are computed, then all are gathered at once: three times as fast
    as one after the other.
    """
    padding, flips = config.random_crop_padding, config.random_horizontal_flip
    if not padding and not flips:
        return images
    n, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(n, height)
    columns = torch.arange(width, device=images.device).expand(n, width)
    if flips:
        flip = randomness.integers(randomness.key(seed, randomness.FLIP, epoch), index, 2).bool()
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    if padding:
        images = torch.nn.functional.pad(images, (padding,) * 4)
        rows = (
            rows
            + randomness.integers(
                randomness.key(seed, randomness.CROP_Y, epoch), index, 2 * padding + 1
            )[:, None]
        )
        columns = (
            columns
            + randomness.integers(
                randomness.key(seed, randomness.CROP_X, epoch), index, 2 * padding + 1
            )[:, None]
        )
    images = augmentations.take(images, rows, columns)
    # With one channel both memory formats are the same bytes, but convolutions add in another order
    # by the strides. Cropped ones have always been channels_last: the weights of every run so far
    # hang on it.
    return (
        images.view(n, height, width, 1).permute(0, 3, 1, 2)
        if padding and channels == 1
        else images
    )
