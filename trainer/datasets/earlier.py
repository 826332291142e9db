"""How earlier versions knew a data set: a run that has started keeps the prepared set that it was
started with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from trainer.config.data import DataConfig, ImageData, ImageFolderData, VOCData
from trainer.datasets import imagefolder, voc, voc_lists
from trainer.prepared.errors import DataError
from trainer.prepared.listing import Listing

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


class FirstListing(Listing):
    """What version 1 of the converters took for images: by torchvision's endings,
    hidden ones too.
    """

    def is_data(self, name: str) -> bool:
        return True

    def is_picture(self, name: str) -> bool:
        return name.lower().endswith(ENDINGS)


def first_name(config: DataConfig, data_dir: Path) -> str | None:
    """The name of the folder that version 1 prepared the set in, as its files are now: it knew them
    by size and mtime.

    None: version 1 would refuse them, or knew the set as it is known today.
    """
    try:
        if isinstance(config, ImageFolderData):
            content = _of_image_folders(config, data_dir / config.folder)
        elif isinstance(config, VOCData):
            content = _of_voc(config, data_dir / config.folder)
        else:
            return None
    except (DataError, OSError, ValueError):
        return None
    digest = hashlib.sha256(b"1")
    for name in sorted(content):
        digest.update(name.encode() + hashlib.sha256(content[name]).digest())
    return f"{config.name}-{digest.hexdigest()[:8]}"


def _of_image_folders(config: ImageFolderData, root: Path) -> dict[str, bytes]:
    on_the_fly = {*ImageData.model_fields, "folder", "random_resized_crop"}
    settings = {
        **config.model_dump(exclude=on_the_fly),
        "encoded": config.random_resized_crop is not None,
    }
    files = hashlib.sha256()
    for split, listed in imagefolder.find(root, config, FirstListing()).splits.items():
        for file in listed:
            try:
                found = os.stat(root / file.name)
                size, mtime = found.st_size, found.st_mtime_ns
            except OSError:
                size, mtime = 0, 0
            files.update(f"{split} {size} {mtime} ".encode() + os.fsencode(file.name) + b"\0")
    return {"settings": json.dumps(settings, sort_keys=True).encode(), "files": files.digest()}


def _of_voc(config: VOCData, root: Path) -> dict[str, bytes]:
    files = hashlib.sha256()
    for split, listed in voc.LISTS.items():
        names: Sequence[str] = (
            (root / voc_lists.FOLDER / f"{listed}.txt").read_text(encoding="utf-8").split()
        )
        for name in names:
            paths = (
                root / "JPEGImages" / f"{name}.jpg",
                root / "SegmentationClass" / f"{name}.png",
            )
            found = [path.stat() for path in paths]
            files.update(f"{split} {name} {[(f.st_size, f.st_mtime_ns) for f in found]}\0".encode())
    return {"settings": f"{config.classes} {config.crop}".encode(), "files": files.digest()}
