"""The batches of a run whose pictures live on the device: a pure function of the step, augmented in pieces that pay."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from trainer import randomness
from trainer.config.data import ImageData
from trainer.data.prepared import Prepared

AUGMENT_SAMPLES = 512  # smaller pieces pay more for the calls than for the pictures (at batch 4 several times more)


class MicroBatch(NamedTuple):
    """What a rank holds at once. images: float32 [n, C, H, W], labels: int64 [n], on the device.

    chunk: number within the step, the same whatever the world size; None where the rank has no samples in this round and
    takes part with a picture at weight zero. global_samples: samples of the whole step, over all ranks.
    """

    images: Tensor
    labels: Tensor
    chunk: int | None
    global_samples: int


def cut(samples: int, most: int) -> list[tuple[int, int]]:
    """Cuts 0..samples into the fewest pieces of at most `most`, as even as can be: [(start, stop), ...]."""
    pieces = -(-samples // most)
    return [(samples * i // pieces, samples * (i + 1) // pieces) for i in range(pieces)]


class Batches:
    """One rank's micro-batches of every step.

    A step's samples are consecutive in the epoch's order. They are cut into chunks of at most `micro_batch_size`; chunk c
    is taken by rank c % world_size in round c // world_size. So the chunks are the same for every world size, and rank 0
    always has samples. The last step of an epoch may be smaller; no sample is dropped or seen twice.
    """

    def __init__(
        self, data: Prepared, config: ImageData, *, seed: int, global_batch_size: int, micro_batch_size: int,
        rank: int, world_size: int, device: torch.device, channels_last: bool = False,
    ) -> None:
        split = data.splits["train"]
        self.images = torch.from_numpy(split.images).to(device)  # uint8; on a CPU the mapped pages, shared between ranks
        self.labels = torch.from_numpy(split.labels).to(device)
        self.chosen = None if split.chosen is None else torch.from_numpy(split.chosen).to(device)
        self.samples = len(split)
        self.config, self.seed, self.device = config, seed, device
        self.rank, self.world_size = rank, world_size
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.steps_per_epoch = -(-self.samples // global_batch_size)
        mean, std = (config.mean, config.std) if config.mean and config.std else (data.mean, data.std)
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        per_step = -(-global_batch_size // world_size)
        self.steps_at_once = max(1, AUGMENT_SAMPLES // per_step)
        self.ready: dict[int, list[MicroBatch]] = {}
        self.epoch, self.order = -1, torch.empty(0)

    def at(self, step: int) -> list[MicroBatch]:
        """The micro-batches of step `step` (0 is the first), one for each round; all ranks have the same number of rounds."""
        if step not in self.ready:
            self.ready = self._make(step)
        return self.ready[step]

    def _make(self, first: int) -> dict[int, list[MicroBatch]]:
        epoch, offset = divmod(first, self.steps_per_epoch)
        if epoch != self.epoch:
            self.epoch, self.order = epoch, randomness.order(self.seed, epoch, self.samples).to(self.device)
            if self.chosen is not None:
                self.order = self.chosen[self.order]
        steps = range(first, first + min(self.steps_at_once, self.steps_per_epoch - offset))
        plan = [(step, *piece) for step in steps for piece in self._pieces(step)]
        index = torch.cat([self.order[start:stop] for _, _, start, stop, _ in plan])
        images, labels = self.augment(self.images[index], index, epoch), self.labels[index]
        made: dict[int, list[MicroBatch]] = {step: [] for step in steps}
        position = 0
        for step, chunk, start, stop, global_samples in plan:
            here = slice(position, position + stop - start)
            # memory of its own: where a slice begins depends on the ranks and on where the run was continued, and MKL adds in
            # another order where that is no multiple of 16 bytes
            made[step].append(MicroBatch(images[here].clone(), labels[here], chunk, global_samples))
            position += stop - start
        return made

    def _pieces(self, step: int) -> list[tuple[int | None, int, int, int]]:
        """(chunk, start, stop, global_samples) of each of this rank's rounds; start and stop are places in the epoch's order."""
        begin = step % self.steps_per_epoch * self.global_batch_size
        samples = min(self.global_batch_size, self.samples - begin)
        chunks = cut(samples, self.micro_batch_size)
        pieces: list[tuple[int | None, int, int, int]] = []
        for round_ in range(-(-len(chunks) // self.world_size)):
            chunk = round_ * self.world_size + self.rank
            if chunk < len(chunks):
                pieces.append((chunk, begin + chunks[chunk][0], begin + chunks[chunk][1], samples))
            else:
                pieces.append((None, begin, begin + 1, samples))
        return pieces

    def augment(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """uint8 [n, C, H, W] -> normalised float32 of the same shape; sample i is cropped by f(seed, epoch, index[i]) alone."""
        padding = self.config.random_crop_padding
        if padding:
            n, _, height, width = images.shape
            padded = torch.nn.functional.pad(images, (padding,) * 4)
            y = randomness.integers(randomness.key(self.seed, randomness.CROP_Y, epoch), index, 2 * padding + 1)
            x = randomness.integers(randomness.key(self.seed, randomness.CROP_X, epoch), index, 2 * padding + 1)
            rows = (y[:, None] + torch.arange(height, device=self.device))[:, :, None]
            columns = (x[:, None] + torch.arange(width, device=self.device))[:, None, :]
            pictures = torch.arange(n, device=self.device)[:, None, None]
            images = padded[pictures, :, rows, columns].permute(0, 3, 1, 2)
        if self.config.random_horizontal_flip:
            flip = randomness.integers(randomness.key(self.seed, randomness.FLIP, epoch), index, 2).bool()
            images = torch.where(flip[:, None, None, None], images.flip(3), images)
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 over 0..255 -> (pixel / 255 - mean) / std, float32, in the run's memory format."""
        return ((images.float() / 255 - self.mean) / self.std).contiguous(memory_format=self.format)

    def for_the_eye(self, images: Tensor) -> Tensor:
        """What `normalise` made, as uint8 over 0..255 again, on the CPU."""
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to("cpu", torch.uint8)
