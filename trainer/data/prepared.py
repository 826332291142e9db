"""Prepared data sets on disk: uint8 pictures and labels as .npy files and a manifest, made once, mapped by every rank."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config.layout import RunDir, read_json
from trainer.config.run import DataConfig
from trainer.data import DATASETS


@dataclass(frozen=True)
class Split:
    """images: uint8 [N, C, H, W]. labels: int64 [N]."""

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A mapped data set. mean and std: one number a channel, of the train pictures over 0..1."""

    path: Path
    classes: list[str]
    mean: list[float]
    std: list[float]
    sha256: str
    splits: dict[str, Split]


def prepare(config: DataConfig, data_dir: Path, cache_dir: Path) -> dict[str, Any]:
    """Converts the data set where the cache lacks it; returns its manifest with `path` and `made` (whether it was made now).

    Appears by one rename, so that an interrupted or a second prepare leaves nothing half-made.
    """
    dataset = DATASETS[config.name]
    raw = dataset.sources(config, data_dir)
    digest = hashlib.sha256(str(dataset.VERSION).encode())
    for name in sorted(raw):
        digest.update(name.encode() + hashlib.sha256(raw[name]).digest())
    path = cache_dir / "prepared" / f"{config.name}-{digest.hexdigest()[:8]}"
    manifest = read_json(path / "manifest.json")
    if manifest:
        return {**manifest, "path": str(path), "made": False}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        manifest = _write(temporary, config.name, dataset.CLASSES, dataset.convert(raw))
        try:
            temporary.rename(path)
        except OSError:  # another prepare was first, with the same bytes
            if not (path / "manifest.json").exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return {**manifest, "path": str(path), "made": True}


def _write(folder: Path, name: str, classes: list[str], splits: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    files = {}
    for split, (images, labels) in splits.items():
        for kind, array in (("images", images), ("labels", labels)):
            file = folder / f"{split}-{kind}.npy"
            with file.open("wb") as out:
                np.save(out, array)
                out.flush()
                os.fsync(out.fileno())
            files[file.name] = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    pixels = splits["train"][0].astype(np.float64) / 255
    manifest = {
        "name": name,
        "classes": classes,
        "mean": pixels.mean(axis=(0, 2, 3)).tolist(),
        "std": pixels.std(axis=(0, 2, 3)).tolist(),
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


def load(run: RunDir) -> Prepared:
    """Maps the arrays that submit prepared for `run`.

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
    return Prepared(path, manifest["classes"], manifest["mean"], manifest["std"], manifest["sha256"], splits)
