"""Writes a prepared set's files piece by piece, so that no more than a piece is held in memory; the
manifest last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trainer.prepared.raw import Piece, Pixels, Seen, Skipped, Source


def write(
    folder: Path, name: str, source: Source, after_each: Callable[[], None]
) -> dict[str, Any]:
    """Writes all pieces into `folder` and returns the manifest.

    after_each: called every few seconds at least. Of each split:

    {split}-images.npy        uint8 [N, C, H, W]; of a table float32 [N, features, 1, 1]
    {split}-labels.npy        int64 [N]; of a table float32 [N, targets]; masks uint8 [N, H, W]

    Where pictures keep their own size and encoding, in place of the images:

    {split}-encoded.bin       the files' bytes, one after the other
    {split}-offsets.npy       int64 [N + 1]: where each begins
    {split}-names.txt         a line each
    {split}-masks.bin         the masks' files, one after the other
    {split}-mask-offsets.npy  int64 [N + 1]: where each begins

    Raises what the pieces raise, and OSError where the disk is full.
    """
    splits: dict[str, _Split] = {}
    skipped: list[Skipped] = []
    seen = Seen()
    pixels: dict[str, Pixels] = {}
    with contextlib.ExitStack() as stack:
        for piece in source.pieces:
            if piece.split not in splits:
                splits[piece.split] = stack.enter_context(contextlib.closing(_Split(folder, piece)))
            splits[piece.split].append(piece)
            skipped += piece.skipped
            seen = seen.and_of(piece.seen)
            if piece.pixels is not None:
                before = pixels.get(piece.split)
                pixels[piece.split] = before.and_of(piece.pixels) if before else piece.pixels
            after_each()
        for split in splits.values():
            split.finish()
    train = splits["train"]
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = {"size": path.stat().st_size, "sha256": _sha256(path, after_each)}
    mean, std = (
        _mean_and_std(train.levels)
        if train.dtype == np.uint8
        else ([0.0] * len(train.levels), [1.0] * len(train.levels))
    )
    manifest = {
        "name": name,
        "classes": source.classes,
        "mean": mean,
        "std": std,
        "samples": {name: split.samples for name, split in splits.items()},
        "shape": list(train.shape),
        **source.details,
        "skipped": [s._asdict() for s in skipped],
        "seen": seen._asdict(),
        **(
            {"pixels": {split: _by_class(found, source) for split, found in pixels.items()}}
            if pixels
            else {}
        ),
        "files": files,
        "sha256": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }
    with (folder / "manifest.json").open("w") as out:
        json.dump(manifest, out, indent=2)
        _sync(out)
    return manifest


def _by_class(pixels: Pixels, source: Source) -> dict[str, Any]:
    """As in JSON, a number for each class of the set."""
    classes = len(source.classes)
    by_class = {
        name: getattr(pixels, name)[:classes].tolist() for name in ("kept", "listed", "scenes")
    }
    return {**by_class, "void": pixels.void}


class _Split:
    """The files of one split: pictures go out as they come, what is small is kept to the end."""

    def __init__(self, folder: Path, first: Piece) -> None:
        self.folder, self.name, self.shape, self.dtype = (
            folder,
            first.split,
            first.images.shape[1:],
            first.images.dtype,
        )
        self.encoded = first.encoded is not None
        self.samples = 0
        self.labels: list[np.ndarray] = []
        self.sizes = [0]
        self.names: list[str] = []
        self.levels = np.zeros((self.shape[0], 256), np.int64)
        self.pictures = (
            folder / f"{self.name}-{'encoded.bin' if self.encoded else 'images.npy'}"
        ).open("wb")
        self.masks = (
            (folder / f"{self.name}-masks.bin").open("wb")
            if first.encoded_masks is not None
            else None
        )
        self.mask_sizes = [0]
        if not self.encoded:
            _header(self.pictures, self.dtype, (0, *self.shape))

    def append(self, piece: Piece) -> None:
        if piece.encoded is None:
            self.pictures.write(np.ascontiguousarray(piece.images).data)
        for name, data in piece.encoded or ():
            self.pictures.write(data)
            self.sizes.append(len(data))
            self.names.append(name)
        for data in piece.encoded_masks or ():
            assert self.masks, "a split's pieces are alike"
            self.masks.write(data)
            self.mask_sizes.append(len(data))
        if not self.masks:
            self.labels.append(piece.labels)
        self.samples += len(piece.labels)
        if self.name == "train" and self.dtype == np.uint8:
            self.levels += [
                np.bincount(piece.images[:, c].reshape(-1), minlength=256)
                for c in range(self.shape[0])
            ]

    def finish(self) -> None:
        if not self.encoded:  # only now the number is known; numpy leaves room for it
            self.pictures.seek(0)
            _header(self.pictures, self.dtype, (self.samples, *self.shape))
        _sync(self.pictures)
        if self.masks:
            _sync(self.masks)
            _save(
                self.folder / f"{self.name}-mask-offsets.npy",
                np.cumsum(self.mask_sizes, dtype=np.int64),
            )
        else:
            _save(self.folder / f"{self.name}-labels.npy", np.concatenate(self.labels))
        if self.encoded:
            _save(self.folder / f"{self.name}-offsets.npy", np.cumsum(self.sizes, dtype=np.int64))
            with (self.folder / f"{self.name}-names.txt").open("w", encoding="utf-8") as out:
                out.writelines(f"{name}\n" for name in self.names)
                _sync(out)

    def close(self) -> None:
        self.pictures.close()
        if self.masks:
            self.masks.close()


def _save(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as out:
        _header(out, array.dtype, array.shape)
        out.write(np.ascontiguousarray(array).data)
        _sync(out)


def _header(out: BinaryIO, dtype: Any, shape: tuple[int, ...]) -> None:
    """np.save's header.

    Its own write says "N requested and M written" of a full disk; a file's says that the disk is
    full.
    """
    description = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(out, description)


def _sha256(path: Path, after_each: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**24):
            digest.update(part)
            after_each()
    return digest.hexdigest()


def _sync(out: Any) -> None:
    out.flush()
    os.fsync(out.fileno())


def _mean_and_std(levels: np.ndarray) -> tuple[list[float], list[float]]:
    """Of pixels over 0..1, one number a channel, from each channel's histogram: exact, and without
    a float copy of the set.
    """
    values = np.arange(256) / 255
    mean = [float((n * values).sum() / n.sum()) for n in levels]
    std = [
        float(np.sqrt((n * (values - m) ** 2).sum() / n.sum()))
        for n, m in zip(levels, mean, strict=True)
    ]
    return mean, std
