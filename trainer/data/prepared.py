"""Prepared data sets on disk: uint8 pictures and labels as .npy files and a manifest, made once, mapped by every rank."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.data import DataConfig
from trainer.config.layout import RunDir, read_json
from trainer.config.lock import Lock
from trainer.data import DATASETS
from trainer.data.raw import DataError

WAIT_S = 600.0


@dataclass(frozen=True)
class Split:
    """The pictures of a split. images: uint8 [N, C, H, W], labels: int64 [N], both mapped; chosen: int64, which of the N belong
    to the split, ascending; None: all."""

    images: np.ndarray
    labels: np.ndarray
    chosen: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels if self.chosen is None else self.chosen)

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Pictures and labels number start..stop of the split."""
        where: slice | np.ndarray = slice(start, stop) if self.chosen is None else self.chosen[start:stop]
        return self.images[where], self.labels[where]


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """(train, validation): round(fraction * N) pictures, at least one on either side, drawn by a fixed seed: the same ones
    whatever the run's seed, so that the points of a sweep are compared on the same pictures."""
    samples = len(split)
    count = min(max(1, round(fraction * samples)), samples - 1)
    permutation = np.random.RandomState(0).permutation(samples)  # RandomState's stream is frozen by numpy's policy
    rest, held = np.sort(permutation[count:]), np.sort(permutation[:count])
    return Split(split.images, split.labels, rest), Split(split.images, split.labels, held)


@dataclass(frozen=True)
class Prepared:
    """A mapped data set. mean and std: one number a channel, of the train pictures over 0..1. splits: train, test, and val where
    there is one."""

    path: Path
    classes: list[str]
    mean: list[float]
    std: list[float]
    sha256: str
    splits: dict[str, Split]


def prepare(config: DataConfig, data_dir: Path, cache_dir: Path, *, allow_unverified: bool = False) -> dict[str, Any]:
    """Converts the data set where the cache lacks it; returns its manifest with `path` and `made` (whether it was made now).

    Appears by one rename, under a lock: an interrupted prepare leaves nothing that a later one would take for whole, and of
    two at once the second waits for the first. Raises raw.DataError, and OSError where the disk is full.
    """
    dataset = DATASETS[config.name]
    raw = dataset.sources(config, data_dir, allow_unverified)
    digest = hashlib.sha256(str(dataset.VERSION).encode())
    for name in sorted(raw):
        digest.update(name.encode() + hashlib.sha256(raw[name]).digest())
    path = cache_dir / "prepared" / f"{config.name}-{digest.hexdigest()[:8]}"
    if manifest := read_json(path / "manifest.json"):
        return {**manifest, "path": str(path), "made": False}
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, end = Lock(path.with_name(f".{path.name}.lock")), time.monotonic() + WAIT_S
    while not lock.acquire():
        if time.monotonic() > end:
            raise DataError(f"another process has been preparing {path} for {WAIT_S:.0f} s: {lock.holder()}")
        time.sleep(0.1)
    temporary = path.with_name(f".{path.name}.tmp")  # one name: what a killed prepare left is removed by the next
    try:
        if manifest := read_json(path / "manifest.json"):  # made while we waited
            return {**manifest, "path": str(path), "made": False}
        shutil.rmtree(path, ignore_errors=True)  # cleared by hand in part
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        manifest = _write(temporary, config.name, dataset.classes(config), dataset.convert(config, raw))
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()
    return {**manifest, "path": str(path), "made": True}


def _write(folder: Path, name: str, classes: list[str], splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    files = {}
    for split, (images, labels) in splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            file = folder / f"{split}-{kind}.npy"
            with file.open("wb") as out:
                # np.save's own write says "N requested and M written" of a full disk; this one says that the disk is full
                np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
                out.write(np.ascontiguousarray(array).data)
                out.flush()
                os.fsync(out.fileno())
            files[file.name] = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    # from a histogram of each channel: exact, and without a float copy of the whole set
    counts = [np.bincount(splits["train"][0][:, c].reshape(-1), minlength=256) for c in range(splits["train"][0].shape[1])]
    levels = np.arange(256) / 255
    mean = [float((n * levels).sum() / n.sum()) for n in counts]
    std = [float(np.sqrt((n * (levels - m) ** 2).sum() / n.sum())) for n, m in zip(counts, mean, strict=True)]
    manifest = {
        "name": name,
        "classes": classes,
        "mean": mean,
        "std": std,
        "samples": {split: len(labels) for split, (_, labels) in splits.items()},
        "shape": list(splits["train"][0].shape[1:]),
        "files": files,
        "sha256": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }
    with (folder / "manifest.json").open("w") as out:
        json.dump(manifest, out, indent=2)
        out.flush()
        os.fsync(out.fileno())
    return manifest


def load(run: RunDir, validation: float | None = None) -> Prepared:
    """Maps the arrays that submit prepared for `run`. validation: the part of the train pictures that is held out.

    Raises FileNotFoundError, naming the folder, where they are gone or a file has another size; ValueError where they changed.
    """
    record = read_json(run.data_record)
    if not record:
        raise FileNotFoundError(f"{run.data_record} is missing: start runs by `batchyard submit`, which prepares the data")
    path = Path(record["path"])
    manifest = read_json(path / "manifest.json")
    if not manifest:
        raise FileNotFoundError(f"no prepared data set in {path}: was the cache cleared? Submitting again makes it")
    if manifest["sha256"] != record["sha256"]:
        raise ValueError(f"the prepared data in {path} is not what this run was submitted with")
    for name, file in manifest["files"].items():
        if not (path / name).exists() or (path / name).stat().st_size != file["size"]:
            raise FileNotFoundError(f"{path / name} is missing or cut short: remove {path} and submit again")
    splits = {}
    for split in manifest["samples"]:
        # mmap_mode "c" (copy on write): ranks share the pages, and torch warns of a read-only map
        images, labels = (np.load(path / f"{split}-{kind}.npy", mmap_mode="c") for kind in ("images", "labels"))
        splits[split] = Split(images, labels)
    if validation is not None:
        splits["train"], splits["val"] = hold_out(splits["train"], validation)
    return Prepared(path, manifest["classes"], manifest["mean"], manifest["std"], manifest["sha256"], splits)
