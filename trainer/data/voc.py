"""Pascal VOC's segmentation in its own layout: lists of names, pictures, and a mask beside each (Everingham et al. 2015).

ImageSets/Segmentation/{train,val}.txt, JPEGImages/<name>.jpg, SegmentationClass/<name>.png below the folder, as VOC2012 has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.config.data import VOCData
from trainer.data import masks, pictures
from trainer.data.masks import Crop
from trainer.data.pictures import BadPicture
from trainer.data.raw import ALL_THE_SAME, ELSEWHERE, DataError, Piece, Skipped, Source, accept

VERSION = 1  # raised when the same files give other bytes
LISTS = {"train": "train", "test": "val"}  # VOC keeps the masks of its own test list to itself
PUBLISHED = {"train": 1464, "test": 1449}  # pictures of VOC2012's lists (host.robots.ox.ac.uk/pascal/VOC/voc2012, its statistics)
AT_ONCE = 16  # pictures of a piece, so that memory is bounded
MOST_SHOWN = 20


class Scene(NamedTuple):
    """A picture that was found, and its mask. name: as the list has it."""

    name: str
    picture: Path
    mask: Path


def source(config: VOCData, data_dir: Path, allow_unverified: bool) -> Source:
    """Reads the lists and looks at every file's size and time, but reads none: the result is known by them.

    Raises raw.DataError, which tells everything that is missing.
    """
    root = data_dir / config.folder
    if not root.is_dir():
        raise DataError(f"voc: there is no folder {root}. Put VOC2012's there, or name the folder that holds it {ELSEWHERE}")
    splits, files = {split: _scenes(root, name) for split, name in LISTS.items()}, hashlib.sha256()
    missing = [str(path) for scenes in splits.values() for s in scenes for path in s[1:] if not path.is_file()]
    if missing:
        raise DataError(_complaint(f"{len(missing)} file(s) that the lists name are missing", missing))
    others = [] if config.classes else _not_vocs({split: len(scenes) for split, scenes in splits.items()})
    if others:
        differ = "; ".join(others)
        refusal = (
            f"voc: {root} is not VOC2012 as it was published: {differ}. Name its classes by train.data.classes where it "
            f"is another set, or train on it {ALL_THE_SAME}"
        )
        accept(allow_unverified, refusal, f"voc: {differ}: they differ from the published ones")
    for split, scenes in splits.items():
        for scene in scenes:
            found = [path.stat() for path in scene[1:]]
            files.update(f"{split} {scene.name} {[(f.st_size, f.st_mtime_ns) for f in found]}\0".encode())
    settings = f"{config.classes} {config.crop}"
    crop = Crop(3, *config.crop)
    content = {"settings": settings.encode(), "files": files.digest()}
    return Source(config.names(), content, _read(root, splits, crop, len(config.names())), {"crop": crop._asdict()}, others)


def _not_vocs(counts: dict[str, int]) -> list[str]:
    """By which lists a set differs from VOC2012; its pictures come as one archive, which is not kept: they are counted."""
    return [
        f"{LISTS[split]}.txt names {count} pictures, VOC2012's {PUBLISHED[split]}"
        for split, count in counts.items() if count != PUBLISHED[split]
    ]  # fmt: skip


def _scenes(root: Path, name: str) -> list[Scene]:
    listed = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    try:
        names = listed.read_text().split()
    except OSError as error:
        raise DataError(f"voc: {listed} cannot be read: {error.strerror}") from None
    if not names:
        raise DataError(f"voc: {listed} names no picture")
    return [Scene(n, root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names]


def _read(root: Path, splits: dict[str, list[Scene]], crop: Crop, classes: int) -> Iterator[Piece]:
    """All pieces in the order of the splits; too small pictures are left out. Raises raw.DataError, at the end, for bad ones."""
    bad: list[str] = []
    for split, scenes in splits.items():
        kept = 0
        for start in range(0, len(scenes), AT_ONCE):
            piece = _piece(split, scenes[start : start + AT_ONCE], crop, classes, bad)
            kept += len(piece.images)
            yield piece
        if not kept and not bad:
            raise DataError(
                f"voc: no picture of {root}'s {LISTS[split]} list is as large as the crop, {crop.height}x{crop.width}: "
                "a smaller train.data.crop keeps more"
            )
    if bad:
        raise DataError(_complaint(f"{len(bad)} picture(s) or mask(s) of {root} are wrong", bad))


def _complaint(what: str, lines: list[str]) -> str:
    more = [f"and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return "\n  ".join([f"voc: {what}:", *lines[:MOST_SHOWN], *more])


def _piece(split: str, scenes: list[Scene], crop: Crop, classes: int, bad: list[str]) -> Piece:
    """Train pictures keep their size, for the random crops; of test pictures the middle is kept. bad: gains what is wrong."""
    whole, cut, skipped = [], [], []
    for scene in scenes:
        try:
            data = scene.picture.read_bytes()
            image, mask = pictures.read(data, crop.channels), masks.read(scene.mask.read_bytes(), classes)
        except (BadPicture, OSError) as error:
            bad.append(f"{scene.name}: {error}")
            continue
        size = f"{image.height}x{image.width}"
        if mask.shape != (image.height, image.width):
            bad.append(f"{scene.name}: the picture has {size} pixels, its mask {mask.shape[0]}x{mask.shape[1]}")
        elif not crop.fits(image):
            skipped.append(Skipped(scene.name, f"{size} pixels are smaller than the crop, {crop.height}x{crop.width}"))
        else:
            whole.append((scene.name, data, masks.encoded(mask)))
            cut.append(crop.cut(image, mask, *crop.middle(image.height, image.width)))
    images = np.stack([i for i, _ in cut]) if cut else np.zeros((0, *crop.shape), np.uint8)
    labels = np.stack([m for _, m in cut]) if cut else np.zeros((0, *crop.shape[1:]), np.uint8)
    if split != "train":
        return Piece(split, images, labels, skipped=skipped)
    return Piece(split, images, labels, [(n, d) for n, d, _ in whole], skipped, [m for _, _, m in whole])
