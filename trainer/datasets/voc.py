"""Pascal VOC's segmentation in its own layout: lists of names, pictures, and a mask beside each
(Everingham et al. 2015).

ImageSets/Segmentation/{train,val}.txt, JPEGImages/<name>.jpg, SegmentationClass/<name>.png below
the folder, as VOC2012 has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.data import VOCData
from trainer.datasets.voc_lists import Lists, Scene
from trainer.prepared import masks, pictures
from trainer.prepared.contents import Contents, Unreadable
from trainer.prepared.errors import DataError
from trainer.prepared.masks import Crop
from trainer.prepared.notes import seen_in
from trainer.prepared.pictures import BadPicture, shown
from trainer.prepared.raw import (
    ALL_THE_SAME,
    ELSEWHERE,
    Allowed,
    Piece,
    Pixels,
    Seen,
    Skipped,
    Source,
    accept,
)

VERSION = 3  # raised when the same files give other bytes, or are known by something else
LISTS = {"train": "train", "test": "val"}  # VOC keeps the masks of its own test list to itself
# pictures of VOC2012's lists (host.robots.ox.ac.uk/pascal/VOC/voc2012, its statistics)
PUBLISHED = {"train": 1464, "test": 1449}
AT_ONCE = 16  # pictures of a piece, so that memory is bounded
MOST_SHOWN, MOST_NAMED = 20, 3


def source(config: VOCData, data_dir: Path, allowed: Allowed) -> Source:
    """Reads the lists, and looks at no picture or mask.

    Raises raw.DataError, which tells everything that is missing.
    """
    root = data_dir / config.folder
    if not root.is_dir():
        raise DataError(
            f"voc: there is no folder {root}. Put VOC2012's there, or name the folder that holds it"
            f" {ELSEWHERE}"
        )
    lists = Lists(root)
    splits = {split: lists.scenes(name) for split, name in LISTS.items()}
    if lists.wrong:
        raise DataError(
            _complaint(f"{len(lists.wrong)} file(s) that the lists name are missing", lists.wrong)
        )
    others = (
        []
        if config.classes
        else _not_vocs({split: len(scenes) for split, scenes in splits.items()})
    )
    if others:
        differ = "; ".join(others)
        refusal = (
            f"voc: {root} is not VOC2012 as it was published: {differ}. Name its classes by"
            f" train.data.classes where it is another set, or train on it {ALL_THE_SAME}"
        )
        accept(
            refusal,
            f"voc: {differ}: they differ from the published ones",
            allowed=allowed.unverified,
        )
    crop = Crop(3, *config.crop, allowed.most_pixels)
    content = {"settings": f"{config.classes} {config.crop}".encode()}
    files = Contents(
        root,
        {split: [name for s in scenes for name in s[1:]] for split, scenes in splits.items()},
        {split: [s.picture for s in scenes] for split, scenes in splits.items()},
    )
    pieces = _read(files, splits, crop, len(config.names()))
    return Source(
        config.names(), content, pieces, {"crop": crop._asdict()}, others, files, lists.notes
    )


def _not_vocs(counts: dict[str, int]) -> list[str]:
    """By which lists a set differs from VOC2012; its pictures come as one archive, which is not
    kept: they are counted.
    """
    return [
        f"{LISTS[split]}.txt names {count} pictures, VOC2012's {PUBLISHED[split]}"
        for split, count in counts.items()
        if count != PUBLISHED[split]
    ]


def _read(
    contents: Contents, splits: dict[str, list[Scene]], crop: Crop, classes: int
) -> Iterator[Piece]:
    """All pieces in the order of the splits; too small pictures are left out.

    Raises raw.DataError, at the end, for bad ones.
    """
    bad: list[tuple[str, str]] = []
    for split, scenes in splits.items():
        kept = 0
        for start in range(0, len(scenes), AT_ONCE):
            piece = _piece(contents, split, scenes[start : start + AT_ONCE], crop, classes, bad)
            kept += len(piece.images)
            yield piece
        if not kept and not bad:
            raise DataError(
                f"voc: no picture of {contents.root}'s {LISTS[split]} list is as large as the crop,"
                f" {crop.height}x{crop.width}: a smaller train.data.crop keeps more"
            )
    if bad:
        raise DataError(
            _complaint(
                f"{len(bad)} picture(s) or mask(s) of {contents.root} are wrong", _by_reason(bad)
            )
        )


def _by_reason(bad: list[tuple[str, str]]) -> list[str]:
    """A line a reason: what is wrong with all masks is said once."""
    names: dict[str, list[str]] = {}
    for name, reason in bad:
        names.setdefault(reason, []).append(shown(name))
    lines = []
    for reason, some in names.items():
        more = f" and {len(some) - MOST_NAMED} more" if len(some) > MOST_NAMED else ""
        lines.append(f"{', '.join(some[:MOST_NAMED])}{more}: {reason}")
    return lines


def _complaint(what: str, lines: list[str]) -> str:
    more = [f"and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return "\n  ".join([f"voc: {what}:", *lines[:MOST_SHOWN], *more])


def _piece(
    contents: Contents,
    split: str,
    scenes: list[Scene],
    crop: Crop,
    classes: int,
    bad: list[tuple[str, str]],
) -> Piece:
    """Train pictures keep their size, for the random crops; of test pictures the middle is kept.
    bad: gains what is wrong.
    """
    whole, cut, skipped = [], [], []
    seen = Seen()
    pixels = Pixels(*(np.zeros(256, np.int64) for _ in range(3)), 0)
    for scene in scenes:
        try:
            data, mask_file = contents.read(scene.picture), contents.read(scene.mask)
            picture = pictures.look(data, crop.channels, crop.most_pixels)
            image, mask = picture.image, masks.read(mask_file, classes, crop.most_pixels)
        except (BadPicture, Unreadable) as error:
            bad.append((scene.name, str(error)))
            continue
        size = f"{image.height}x{image.width}"
        if mask.shape != (image.height, image.width):
            bad.append(
                (
                    scene.name,
                    f"the picture has {size} pixels, its mask {mask.shape[0]}x{mask.shape[1]}",
                )
            )
        elif not crop.fits(image):
            pixels.listed[:] += np.bincount(mask.reshape(-1), minlength=256)
            skipped.append(
                Skipped(
                    scene.name,
                    f"{size} pixels are smaller than the crop, {crop.height}x{crop.width}",
                )
            )
        else:
            seen = seen.and_of(seen_in(picture))
            whole.append((scene.name, data, masks.encoded(mask)))
            cut.append(crop.cut(image, mask, *crop.middle(image.height, image.width)))
            pixels = pixels.and_of(_pixels_of(mask if split == "train" else cut[-1][1]))
    images = np.stack([i for i, _ in cut]) if cut else np.zeros((0, *crop.shape), np.uint8)
    labels = np.stack([m for _, m in cut]) if cut else np.zeros((0, *crop.shape[1:]), np.uint8)
    if split != "train":
        return Piece(split, images, labels, skipped=skipped, seen=seen, pixels=pixels)
    return Piece(
        split,
        images,
        labels,
        [(n, d) for n, d, _ in whole],
        skipped,
        [m for _, _, m in whole],
        seen,
        pixels,
    )


def _pixels_of(mask: np.ndarray) -> Pixels:
    counts = np.bincount(mask.reshape(-1), minlength=256)
    known = counts.copy()
    known[masks.VOID] = 0
    return Pixels(counts, counts, (counts > 0).astype(np.int64), int(not known.any()))
