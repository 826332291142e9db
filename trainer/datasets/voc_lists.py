"""Pascal VOC's lists as they are met: which image and which mask a line names, where
that is clear.
"""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.prepared.errors import DataError
from trainer.prepared.listing import counted
from trainer.prepared.pictures import EXTENSIONS, shown

FOLDER = "ImageSets/Segmentation"
IMAGES, MASKS = "JPEGImages", "SegmentationClass"
LABEL = re.compile(r"[-+]?\d+(\.\d+)?")  # behind a name, as in `2008_000001 -1`


class Scene(NamedTuple):
    """A picture and its mask, by their names below the set's folder. name: as the list has it,
    without an ending.
    """

    name: str
    picture: str
    mask: str


class Lists:
    """The lists of a set below `root`. wrong: lines that name nothing, or more than one thing;
    notes: what a user should know.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images, self.masks = _by_stem(root, IMAGES), _by_stem(root, MASKS)
        self.wrong: list[str] = []
        self.notes: list[str] = []

    def scenes(self, listed: str) -> list[Scene]:
        """The scenes of a list, in its order.

        Raises DataError where the list cannot be read or is empty.
        """
        path = self.root / FOLDER / f"{listed}.txt"
        names, labels = [], 0
        for line in _text(path).splitlines():
            found, has_labels = self._names(line.strip())
            names += found
            labels += has_labels
        if not names:
            raise DataError(f"voc: {path} names no picture")
        if labels:
            self.notes.append(
                f"{listed}.txt has labels behind {labels:,} name(s), which are not used"
            )
        twice = Counter({name: count for name, count in Counter(names).items() if count > 1})
        if twice:
            self.notes.append(
                f"{listed}.txt names {len(twice):,} image(s) more than once, and so they are used:"
                f" {counted(twice)}"
            )
        return [scene for name in names if (scene := self._scene(name)) is not None]

    def _names(self, line: str) -> tuple[list[str], bool]:
        """(the names in a line, whether labels stand behind one).

        A name may hold spaces, its folder and its ending.
        """
        whole = self._known(line)
        if whole is not None:
            return [whole], False
        parts = line.split()
        names = [self._known(part) or part for part in parts]
        if len(names) > 1 and all(LABEL.fullmatch(part) for part in parts[1:]):
            return names[:1], True
        same = len(set(names)) == 1  # an image and its mask, each by its path
        return names[:1] if same else names, False

    def _known(self, written: str) -> str | None:
        """The name of an image that is there, as it is written without folders and ending; None:
        there is none.
        """
        name = unicodedata.normalize("NFC", written)
        for folder in (IMAGES, MASKS):
            if f"/{folder}/" in f"/{name}":
                name = f"/{name}".rpartition(f"/{folder}/")[2]
        stem, ending = os.path.splitext(name)
        if name in self.images:
            return name
        return stem if ending.lower() in EXTENSIONS and stem in self.images else None

    def _scene(self, name: str) -> Scene | None:
        """None, and told in `wrong`, where the image or the mask is missing, or is there more than
        once.
        """
        key = unicodedata.normalize("NFC", name)
        picture = self._one(self.images.get(key, []), f"{IMAGES}/{name}.jpg")
        mask = self._one(self.masks.get(key, []), f"{MASKS}/{name}.png")
        return Scene(name, picture, mask) if picture and mask else None

    def _one(self, found: list[str], usual: str) -> str | None:
        if usual in found:
            return usual
        if len(found) == 1:
            return found[0]
        if found:
            self.wrong.append(
                f"{shown(str(self.root / usual))}: there are"
                f" {', '.join(map(shown, sorted(found)))}: keep one"
            )
        else:
            self.wrong.append(shown(str(self.root / usual)))
        return None


def _by_stem(root: Path, folder: str) -> dict[str, list[str]]:
    """The files with an image's ending, by their names below the folder without it: listed, which
    takes no stat of each.
    """
    found: dict[str, list[str]] = {}
    for name in _files(root, folder):
        stem, ending = os.path.splitext(name)
        if ending.lower() in EXTENSIONS:
            found.setdefault(unicodedata.normalize("NFC", stem), []).append(f"{folder}/{name}")
    return found


def _files(root: Path, folder: str) -> Iterator[str]:
    for place, _, names in os.walk(root / folder, followlinks=True):
        below = os.path.relpath(place, root / folder)
        yield from (name if below == "." else f"{below}/{name}" for name in names)


def _text(path: Path) -> str:
    """A list's text; a byte order mark before it, as some editors write, is no part of the first
    name. Raises DataError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"voc: {path} cannot be read: {error.strerror}") from None
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"voc: {path} is no UTF-8 text: byte {error.start} is {content[error.start]:#04x}"
        ) from None
