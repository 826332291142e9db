"""The batches of a run whose pictures do not live on the device: large sets, and encoded pictures.

They come through torch's DataLoader, whose workers make the very same batches, whatever their
number.
"""

from __future__ import annotations

import atexit
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from trainer import randomness
from trainer.batches import augment as augmentations
from trainer.batches.batches import Batches, Plan, Sampling, augment
from trainer.batches.rows import Rows
from trainer.config.data import ImageData, RandomResizedCrop
from trainer.config.run import RunConfig
from trainer.config.tables import TableData
from trainer.prepared import pictures
from trainer.prepared.arrays import Encoded, Prepared
from trainer.prepared.errors import DataError
from trainer.prepared.masks import EncodedMasks
from trainer.ranks import machine
from trainer.ranks.group import World

MOST_WORKERS = 16  # chosen by ourselves; execution.workers may ask for more
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def build(data: Prepared, config: RunConfig, world: World) -> Batches:
    """The batches of one rank: on the device where the pictures fit into execution.device_data_gb,
    else through a DataLoader.
    """
    train, how, images = config.train, config.execution, data.splits["train"].images
    sampling = Sampling(
        train.seed, train.global_batch_size, config.micro_batch_size(), world.rank, world.size
    )
    of_this_rank: dict[str, Any] = {
        "sampling": sampling,
        "device": world.device,
        "channels_last": train.channels_last,
    }
    if isinstance(train.data, TableData):
        return Rows(data, train.data, **of_this_rank)
    if isinstance(images, np.ndarray) and images.nbytes <= how.device_data_gb * 2**30:
        return Batches(data, train.data, **of_this_rank)
    workers = how.workers
    # the CPUs that are not busy with the model: where they all are, workers take from it what they
    # give
    if workers is None:
        busy = 1 if world.device.type == "cuda" else how.threads_per_rank
        workers = min(max(0, machine.cpus_of_a_rank() - busy), MOST_WORKERS)
    return Loader(data, train.data, workers=workers, epochs=train.epochs, **of_this_rank)


class Steps(Dataset):
    """What the workers read: item `step` is the pictures of plan.together(step), augmented, and
    their labels, on the CPU.
    """

    def __init__(self, data: Prepared, config: ImageData, plan: Plan) -> None:
        self.data, self.config, self.plan = data, config, plan

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        """(uint8 [n, C, H, W], int64 [n]); or, of a picture that can no longer be read, what is
        wrong.
        """
        split = self.data.splits["train"]
        epoch, index = self.plan.index(self.plan.together(step))
        numbers = index.numpy()
        try:
            if isinstance(split.images, Encoded):
                images = torch.from_numpy(
                    np.stack([self.crop(split.images, int(number), epoch) for number in numbers])
                )
            else:
                images = torch.from_numpy(split.images[numbers])
        except DataError as error:
            return str(error)
        images = augment(images, index, epoch, self.config, self.plan.seed)
        images = augmentations.apply(images, index, epoch, self.config.augment, self.plan.seed)
        return images, torch.from_numpy(split.labels[numbers])

    def crop(self, encoded: Encoded, number: int, epoch: int) -> np.ndarray:
        """A random piece of picture `number`, resized as torchvision's RandomResizedCrop resizes
        one of Pillow's.
        """
        image, size = encoded.image(number), encoded.fit.size
        left, top, width, height = crop_box(
            *image.size, self.config.random_resized_crop, self.plan.seed, epoch, number
        )
        piece = image.crop((left, top, left + width, top + height))
        return pictures.pixels(piece.resize((size, size), Image.Resampling.BILINEAR))


class Scenes(Steps):
    """The same of pictures with masks: a random piece of both, f(seed, epoch, sample), at the
    pictures' own scale.
    """

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor] | str:
        """(uint8 [n, C, H, W], uint8 [n, H, W]); or, of a picture that can no longer be read, what
        is wrong.
        """
        epoch, index = self.plan.index(self.plan.together(step))
        try:
            cut = [self.piece(int(number), epoch) for number in index]
        except DataError as error:
            return str(error)
        return torch.from_numpy(np.stack([i for i, _ in cut])), torch.from_numpy(
            np.stack([m for _, m in cut])
        )

    def piece(self, number: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        split = self.data.splits["train"]
        image, mask, crop = split.images.image(number), split.labels.mask(number), split.labels.crop
        counter, seed = torch.tensor(number), self.plan.seed
        top = randomness.integers(
            randomness.key(seed, randomness.CROP_Y, epoch), counter, image.height - crop.height + 1
        )
        left = randomness.integers(
            randomness.key(seed, randomness.CROP_X, epoch), counter, image.width - crop.width + 1
        )
        return crop.cut(image, mask, int(top), int(left))


def crop_box(
    width: int, height: int, config: RandomResizedCrop, seed: int, epoch: int, sample: int
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a random crop, f(seed, epoch, sample): torchvision's
    RandomResizedCrop.get_params, whose numbers come from a counter. Ten tries, then the centre.
    """
    counters = sample * 40 + torch.arange(40)
    draws = (
        randomness.uniform(randomness.key(seed, randomness.RESIZED_CROP, epoch), counters)
        .view(10, 4)
        .tolist()
    )
    (smallest, largest), (narrow, wide) = config.scale, config.ratio
    for of_area, of_ratio, of_left, of_top in draws:
        area = width * height * (smallest + (largest - smallest) * of_area)
        ratio = math.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * of_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(of_left * (width - w + 1)), int(of_top * (height - h + 1)), w, h
    w = max(1, min(width, round(height * wide)))
    h = max(1, min(height, round(width / narrow)))
    return (width - w) // 2, (height - h) // 2, w, h


class Loader(Batches):
    """One rank's micro-batches of every step, cut out and augmented by worker processes (0: by this
    one).
    """

    def __init__(
        self, data: Prepared, config: ImageData, *, workers: int, epochs: int, **of_this_rank: Any
    ) -> None:
        super().__init__(data, config, **of_this_rank)
        self.workers, self.total_steps = (
            min(workers, machine.cpus()),
            epochs * self.steps_per_epoch,
        )
        self.where = f"come through a DataLoader with {self.workers} worker(s)"
        if workers > self.workers:
            self.where += f", one a CPU here ({workers} asked for)"
        self.iterator: Iterator[tuple[Tensor, Tensor] | str] | None = None
        self.next_step = -1
        self.processes: list[Any] = []

    def place(self, data: Prepared) -> None:
        """Nowhere: each worker maps the files."""
        masked = isinstance(data.splits["train"].labels, EncodedMasks)
        self.steps = (Scenes if masked else Steps)(data, self.config, self.plan)

    def pictures(self, steps: range) -> tuple[Tensor, Tensor]:
        """Waits for the workers.

        Asked for the steps one after the other; any other step starts them anew.

        Raises DataError, which names the picture, where one can no longer be read, and RuntimeError
        where a worker died.
        """
        if self.iterator is None or steps.start != self.next_step:
            self._start(steps.start)
        self.next_step = steps.stop
        try:
            item, died = next(self.iterator), None
        except (RuntimeError, OSError, EOFError):  # of a worker's own, or since it is gone
            if (died := self._died()) is None:
                raise
        # outside the `except`, whose traceback would keep the iterator and its workers alive
        if died:
            raise RuntimeError(
                f"a DataLoader worker {died}: often too little memory, or too little of /dev/shm;"
                " fewer execution.workers need less, and 0 nothing beside the rank's own"
            )
        if isinstance(item, str):
            raise DataError(item)
        images, labels = item
        return images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def _start(self, first: int) -> None:
        """Starts the workers at step `first`.

        Their order and number do not decide anything: items come in order.

        They come from a server that has imported torch once, since a fork of a process with gloo's
        threads is not safe, and a fresh interpreter each costs 1.3 s and 300 MB. They are born deaf
        to the signals that ask a rank to stop: the batches are needed until all ranks have stopped
        at the same step.
        """
        self.close()
        starts = []
        while first < self.total_steps:
            starts.append(first)
            first = self.plan.together(first).stop
        many: dict[str, Any] = {}
        if self.workers:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload([__name__])
            many = {"multiprocessing_context": context, "worker_init_fn": _end_with_the_rank}
        loader = DataLoader(
            self.steps,
            batch_size=None,
            sampler=starts,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),
            **many,
        )
        if not self.workers:
            self.iterator = iter(loader)
            return
        others = multiprocessing.active_children()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            resource_tracker.ensure_running()  # it unblocks some of them when it has started
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            self.iterator = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.processes = [
            child for child in multiprocessing.active_children() if child not in others
        ]
        atexit.register(self.close)  # Python would ask them by SIGTERM, and wait for ever

    def _died(self) -> str | None:
        """How a worker ended, if one did; the server tells of it a moment later."""
        ended = multiprocessing.connection.wait(
            [process.sentinel for process in self.processes], timeout=2.0
        )
        code = next(
            (process.exitcode for process in self.processes if process.sentinel in ended), None
        )
        return (
            None
            if code is None
            else (
                f"was killed by {signal.Signals(-code).name}"
                if code < 0
                else f"exited with status {code}"
            )
        )

    def close(self) -> None:
        """Ends the workers."""
        atexit.unregister(self.close)
        self.iterator = None  # they leave when they have made what they are at
        for process in self.processes:
            process.kill()
        self.processes = []


def _end_with_the_rank(worker: int) -> None:
    """Watches the rank from a thread: a worker whose rank was killed would wait for ever."""
    rank = multiprocessing.parent_process()
    assert rank is not None

    def watch() -> None:
        rank.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
