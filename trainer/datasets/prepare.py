"""Prepared data sets on disk: uint8 pictures (or encoded ones), labels and a manifest, made once,
mapped by every rank.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trainer.config import steps
from trainer.config.data import DataConfig
from trainer.config.files.layout import RunDir, read_json
from trainer.config.files.lock import Lock, LockLost
from trainer.datasets.find import dataset
from trainer.prepared import pictures
from trainer.prepared.masks import Crop, EncodedMasks
from trainer.prepared.notes import of_copies, of_decoding
from trainer.prepared.pictures import MOST_PIXELS, BadPicture, Fit
from trainer.prepared.raw import Allowed, DataError, Source
from trainer.prepared.writing import write

WAIT_S = 6 * 3600.0  # for another process that prepares the same data, and is alive
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


def prepare(
    config: DataConfig,
    data_dir: Path,
    cache_dir: Path,
    *,
    allow_unverified: bool = False,
    started: dict[str, Any] | None = None,
    most_pixels: int | None = None,
) -> dict[str, Any]:
    """Converts the data set where the cache lacks it; returns its manifest with `path`, `made`
    (whether it was made now), `unverified` (the raw files that differ from the published
    checksums), `sources` (the sha256 of all that it is made from) and `notes` (what a user should
    know of it).

    most_pixels: of an image that is decoded; None: pictures.MOST_PIXELS. started: what this
    returned when the run was started, which keeps its set where the same sources are prepared
    otherwise now.

    A set is known by the contents of its files, and its folder is named by them. It appears by one
    rename, under a lock: an interrupted prepare leaves nothing that a later one would take for
    whole, and of two at once the second waits for the first.

    Raises raw.DataError, and OSError where the disk is full.
    """
    of = dataset(config.name)
    source = of.source(config, data_dir, Allowed(allow_unverified, most_pixels or MOST_PIXELS))
    content = dict(source.content)
    if source.files:
        source.files.learn(cache_dir / "contents")
        content["files"] = source.files.digest()
    sources = _digest(b"", content)
    path = (
        cache_dir / "prepared" / f"{config.name}-{_digest(str(of.VERSION).encode(), content)[:8]}"
    )
    manifest = (
        _kept(started, sources, config, data_dir)
        if started and started["path"] != str(path)
        else None
    )
    made = False
    if manifest and started:
        path = Path(started["path"])
    else:
        manifest, made = _found_or_made(path, config.name, source)
    notes = [
        *source.notes,
        *(of_copies(source.files) if source.files else ()),
        *of_decoding(manifest),
    ]
    return {
        **manifest,
        "path": str(path),
        "unverified": list(source.unverified),
        "sources": sources,
        "notes": notes,
        "made": made,
    }


def _found_or_made(path: Path, name: str, source: Source) -> tuple[dict[str, Any], bool]:
    """(the manifest of the set in `path`, whether it was made now)."""
    if manifest := read_json(path / "manifest.json"):
        return manifest, False
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, began = Lock(path.with_name(f".{path.name}.lock")), time.monotonic()
    while not lock.acquire():
        if time.monotonic() > began + WAIT_S:
            raise DataError(
                f"another process has been preparing {path} for {WAIT_S:.0f} s: {lock.owner()}"
            )
        time.sleep(0.1)
    temporary = path.with_name(f".{path.name}.{lock.nonce}.tmp")
    try:
        if manifest := read_json(path / "manifest.json"):  # made while we waited
            return manifest, False
        shutil.rmtree(path, ignore_errors=True)  # cleared by hand in part
        # by a prepare that was killed
        for left in path.parent.glob(f".{escape(path.name)}.*tmp"):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        manifest = write(temporary, name, source, lock.renew)
        lock.verify()
        temporary.rename(path)
    except LockLost as error:
        raise DataError(f"another process prepares {path} now: {error}; submit again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()
    return manifest, True


def _digest(version: bytes, content: dict[str, bytes]) -> str:
    digest = hashlib.sha256(version)
    for name in sorted(content):
        digest.update(name.encode() + hashlib.sha256(content[name]).digest())
    return digest.hexdigest()


def _kept(
    started: dict[str, Any], sources: str, config: DataConfig, data_dir: Path
) -> dict[str, Any] | None:
    """The manifest of the set that a run was started with; None where it is gone, or was made from
    other sources.
    """
    path = Path(started["path"])
    manifest: dict[str, Any] | None = read_json(path / "manifest.json")
    if manifest is None or manifest["sha256"] != started["sha256"]:
        return None
    if "sources" in started:
        return manifest if started["sources"] == sources else None
    from trainer.datasets import earlier  # for runs of the first version alone

    return manifest if earlier.first_name(config, data_dir) == path.name else None


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
