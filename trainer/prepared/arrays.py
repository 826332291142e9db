"""Prepared data as the trainer reads them: arrays that are mapped, and the splits of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.config import steps
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.prepared import pictures
from trainer.prepared.errors import DataError
from trainer.prepared.masks import Crop, EncodedMasks
from trainer.prepared.pictures import BadPicture, Fit

ALL = (None, None)


class Encoded:
    """Pictures of any size as their files' bytes, read like a mapped array uint8 [N, C, H, W]:
    decoded, resized and centre-cropped as they are asked for.
    """

    def __init__(self, folder: Path, split: str, fit: Fit | Crop) -> None:
        self.folder, self.split, self.fit = folder, split, fit
        self.data = np.memmap(folder / f"{split}-encoded.bin", np.uint8, mode="r")
        self.offsets = np.load(folder / f"{split}-offsets.npy", mmap_mode="r")
        self.shape = (len(self.offsets) - 1, *fit.shape)

    def image(self, number: int) -> Image.Image:
        """Picture `number` at its own size.

        Raises DataError, which names the picture, where its bytes are spoilt.
        """
        begin, end = self.offsets[number : number + 2]
        try:
            return pictures.read(
                self.data[begin:end].tobytes(), self.fit.channels, self.fit.most_pixels
            )
        except BadPicture as error:
            raise DataError(
                f"{self.name(number)} could be read when it was prepared and now cannot ({error}):"
                f" remove {self.folder} and submit again"
            ) from None

    def name(self, number: int) -> str:
        """The file that picture `number` came from, relative to the data set's folder."""
        return (
            (self.folder / f"{self.split}-names.txt")
            .read_text(encoding="utf-8")
            .split("\n")[number]
        )

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        numbers = range(self.shape[0])[where] if isinstance(where, slice) else where
        return np.stack([self.fit(self.image(int(number))) for number in numbers])


@dataclass(frozen=True)
class Split:
    """The pictures of a split. images: uint8 [N, C, H, W], labels: int64 [N], both mapped (masks:
    uint8 [N, H, W]; a table: trainer/batches/rows.py); chosen: int64, which of the N belong to the
    split, ascending; None: all.
    """

    images: np.ndarray | Encoded
    labels: np.ndarray | EncodedMasks
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels if self.chosen is None else self.chosen)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures and labels number start..stop of the split."""
        where: slice | np.ndarray = (
            slice(start, stop) if self.chosen is None else self.chosen[start:stop]
        )
        return self.images[where], self.labels[where]


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """(train, validation): round(fraction * N) pictures, at least one on either side, drawn by a
    fixed seed: the same ones whatever the run's seed, so that the points of a sweep are compared on
    the same pictures.
    """
    samples = len(split)
    count = steps.held_out(samples, fraction)
    # RandomState's stream is frozen by numpy's policy
    permutation = np.random.RandomState(0).permutation(samples)
    rest, held = np.sort(permutation[count:]), np.sort(permutation[:count])
    return Split(split.images, split.labels, rest), Split(split.images, split.labels, held)


@dataclass(frozen=True)
class Prepared:
    """A mapped data set. mean and std: one number a channel, of the train pictures over 0..1.
    splits: train, test, and val where there is one. skipped: how many pictures could not be read
    and are in none. validation, wanted: what `mapped` was asked for.
    """

    path: Path
    classes: list[str]
    mean: list[float]
    std: list[float]
    sha256: str
    splits: dict[str, Split]
    skipped: int = 0
    validation: float | None = None
    wanted: tuple[int | None, int | None] = ALL

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process maps the files itself: pickled, the arrays would be copied."""
        return mapped, (self.path, self.validation, self.wanted)


def load(
    run: RunDir,
    validation: float | None = None,
    copy: Path | None = None,
    wanted: tuple[int | None, int | None] = ALL,
) -> Prepared:
    """Maps the arrays that submit prepared for `run`. validation: the part of the train pictures
    that is held out. copy: where they lie on this node's own disk. wanted: how many of the train
    and of the test pictures are used, the first ones; None: all.

    Raises FileNotFoundError, naming the folder, where they are gone or a file has another size;
    ValueError where they changed.
    """
    record = read_json(run.data_record)
    if not record:
        raise FileNotFoundError(
            f"{run.data_record} is missing: start runs by `batchyard submit`, which prepares the"
            " data"
        )
    path = copy or Path(record["path"])
    manifest = read_json(path / "manifest.json")
    if not manifest:
        raise FileNotFoundError(
            f"no prepared data set in {path}: was the cache cleared? Submitting again makes it"
        )
    if manifest["sha256"] != record["sha256"]:
        raise ValueError(f"the prepared data in {path} is not what this run was submitted with")
    for name, file in manifest["files"].items():
        if not (path / name).exists() or (path / name).stat().st_size != file["size"]:
            raise FileNotFoundError(
                f"{path / name} is missing or cut short: remove {path} and submit again"
            )
    return mapped(path, validation, wanted)


def mapped(
    path: Path, validation: float | None = None, wanted: tuple[int | None, int | None] = ALL
) -> Prepared:
    """The prepared set in `path`, whose files are whole. validation and wanted: as `load` takes
    them.
    """
    manifest, splits = read_json(path / "manifest.json"), {}
    first = dict(zip(("train", "test"), wanted, strict=True))
    for split in manifest["samples"]:
        # mmap_mode "c" (copy on write): ranks share the pages, and torch warns of a read-only map
        if (path / f"{split}-masks.bin").exists():
            crop = Crop(**manifest["crop"])
            splits[split] = Split(Encoded(path, split, crop), EncodedMasks(path, split, crop))
            continue
        labels = np.load(path / f"{split}-labels.npy", mmap_mode="c")[: first.get(split)]
        if (path / f"{split}-encoded.bin").exists():
            splits[split] = Split(Encoded(path, split, Fit(**manifest["fit"])), labels)
        else:
            splits[split] = Split(
                np.load(path / f"{split}-images.npy", mmap_mode="c")[: first.get(split)], labels
            )
    if validation is not None:
        splits["train"], splits["val"] = hold_out(splits["train"], validation)
    return Prepared(
        path,
        manifest["classes"],
        manifest["mean"],
        manifest["std"],
        manifest["sha256"],
        splits,
        len(manifest.get("skipped", ())),
        validation,
        wanted,
    )
