"""Class folders with pictures of any size and mode, as torchvision's ImageFolder lists them: found,
checked, read in parallel.
"""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.config.data import ImageFolderData
from trainer.prepared import pictures
from trainer.prepared.contents import Contents, Unreadable
from trainer.prepared.errors import DataError
from trainer.prepared.listing import Listing, is_data
from trainer.prepared.notes import seen_in
from trainer.prepared.pictures import BadPicture, Fit, shown
from trainer.prepared.raw import ELSEWHERE, Allowed, Piece, Seen, Skipped, Source

VERSION = 3  # raised when the same files give other bytes, or are known by something else
# what a thread reads at a time, so that memory is bounded also where files are large
AT_ONCE, AT_ONCE_BYTES = 64, 2**22
MOST_SHOWN, MOST_NAMED = 20, 5
PROGRESS_S = 3.0


class File(NamedTuple):
    """A picture of the set. name: below the set's folder, with slashes; label: the number of its
    class.
    """

    name: str
    label: int


def source(config: ImageFolderData, data_dir: Path, allowed: Allowed) -> Source:
    """Lists the folders, and looks at no file.

    Raises raw.DataError, which tells everything that is wrong with the folders.
    """
    root = data_dir / config.folder
    if not root.is_dir():
        raise DataError(
            f"imagefolder: there is no folder {root}. Put it there, or name the folder that holds"
            f" it {ELSEWHERE}"
        )
    listing = Listing()
    classes, splits, skipped = find(root, config, listing)
    settings = config.prepared_by()
    del settings["folder"]  # the same files elsewhere are the same set
    # it decides what is skipped
    if config.skip_bad and allowed.most_pixels != pictures.MOST_PIXELS:
        settings["most_pixels"] = allowed.most_pixels
    content = {"settings": json.dumps(settings, sort_keys=True).encode()}
    fit = Fit.of(config, allowed.most_pixels)
    files = Contents(
        root, {split: [file.name for file in listed] for split, listed in splits.items()}
    )
    names = [os.fsencode(name).decode(errors="replace") for name in classes]
    pieces = _read(files, config, fit, splits, skipped)
    return Source(
        names, content, pieces, {"fit": fit._asdict()}, files=files, notes=listing.notes()
    )


class Found(NamedTuple):
    """What the folders hold. splits: the files of each in torchvision's order; skipped: what has a
    picture's name and is a folder without pictures.
    """

    classes: list[str]
    splits: dict[str, list[File]]
    skipped: list[Skipped]


def find(root: Path, config: ImageFolderData, listing: Listing) -> Found:
    """Lists the class folders.

    Raises raw.DataError, which tells everything that is wrong with them.
    """
    if config.fractions is not None:
        folders = {"all": ""}
    else:
        folders = {
            "train": config.train_folder,
            "val": config.validation_folder,
            "test": config.test_folder,
        }
        folders = {split: folder for split, folder in folders.items() if folder is not None}
    wrong: list[str] = []
    classes: dict[str, list[str]] = {}
    splits: dict[str, list[File]] = {}
    skipped: list[Skipped] = []
    flat = _class_folders_at_once(root, folders) if config.fractions is None else []
    if flat:
        names = ", ".join(map(shown, flat[:MOST_NAMED])) + (
            ", ..." if len(flat) > MOST_NAMED else ""
        )
        raise DataError(
            f"imagefolder: {root} has no folder '{config.train_folder}' and no"
            f" '{config.test_folder}', but folders with pictures ({names}): where these are the"
            " classes, train.data.fractions splits them, as in fractions: [0.8, 0.2]"
        )
    for split, folder in folders.items():
        if not (root / folder).is_dir():
            there = (
                ", ".join(
                    sorted(
                        shown(e.name) for e in os.scandir(root) if e.is_dir() and is_data(e.name)
                    )
                )
                or "no folder"
            )
            setting = "validation_folder" if split == "val" else f"{split}_folder"
            wrong.append(f"{root} has no folder '{folder}' (train.data.{setting}); it has {there}")
            continue
        classes[split], complaints = _classes(root / folder, listing)
        wrong += complaints
        splits[split] = []
        labels = {_composed(name): label for label, name in enumerate(next(iter(classes.values())))}
        for name in classes[split]:
            found, hollow = _pictures(root, Path(folder) / name, listing)
            label = labels.get(_composed(name), -1)  # -1: told below
            splits[split] += [File(picture, label) for picture in found]
            skipped += hollow
            if not found:
                wrong.append(
                    f"{shown(str(root / folder / name))} holds no picture"
                    f" ({' '.join(pictures.EXTENSIONS)}): put its pictures there, or remove the"
                    " folder"
                )
    wrong += _differences(root, folders, classes)
    if config.fractions is not None and not wrong:
        wrong += _is_split_already(root, config.folder, classes["all"])
    if wrong:
        more = [f"and {len(wrong) - MOST_SHOWN} more"] if len(wrong) > MOST_SHOWN else []
        raise DataError("imagefolder: " + "\n  ".join(wrong[:MOST_SHOWN] + more))
    if config.fractions is not None:
        return Found(
            classes["all"],
            _by_fractions(splits["all"], config.fractions, config.split_seed),
            skipped,
        )
    return Found(classes["train"], splits, skipped)


def _composed(name: str) -> str:
    """By which names that look alike are equal: macOS writes an accent as a letter of its own."""
    return unicodedata.normalize("NFC", name)


def _class_folders_at_once(root: Path, folders: dict[str, str]) -> list[str]:
    """The folders that hold pictures where there are two or more, and none of the folders of the
    splits.
    """
    if any((root / folder).is_dir() for folder in folders.values()):
        return []
    names = sorted(e.name for e in os.scandir(root) if e.is_dir() and is_data(e.name))
    found = [
        name
        for name in names
        if any(file.lower().endswith(pictures.EXTENSIONS) for file in os.listdir(root / name))
    ]
    return found if len(found) > 1 else []


def _classes(folder: Path, listing: Listing) -> tuple[list[str], list[str]]:
    """(names of the class folders, sorted; what is wrong)."""
    entries = {e.name: e for e in os.scandir(folder)}
    names = listing.data(list(entries))
    classes = [name for name in names if entries[name].is_dir()]
    loose = [name for name in names if not entries[name].is_dir() and listing.is_picture(name)]
    wrong = []
    if loose:
        wrong.append(
            f"{len(loose)} picture(s) lie beside the class folders of {folder} ({shown(loose[0])},"
            " ...): move each into its class's folder, or out of this one"
        )
    alike: dict[str, str] = {}
    for name in classes:
        if alike.setdefault(_composed(name), name) != name:
            wrong.append(
                f"{folder} has two class folders that look alike, {alike[_composed(name)]!a} and"
                f" {name!a}: their letters are composed otherwise (Unicode); move the pictures"
                " into one"
            )
    if len(classes) < 2:
        wrong.append(
            f"{folder} has {len(classes)} class folder(s); expected one for each class, at"
            " least two"
        )
    return classes, wrong


def _pictures(root: Path, folder: Path, listing: Listing) -> tuple[list[str], list[Skipped]]:
    """(the pictures' names in a class folder and below, as torchvision lists them; folders that are
    named like a picture).
    """
    found: list[str] = []
    hollow: list[Skipped] = []

    def tell(error: OSError) -> None:
        raise DataError(f"imagefolder: {error.filename} cannot be listed: {error.strerror}")

    walked = []
    for place, folders, names in os.walk(root / folder, followlinks=True, onerror=tell):
        folders[:] = listing.data(folders)
        for name in folders:
            link = os.path.join(place, name)
            if os.path.islink(link) and f"{os.path.realpath(place)}/".startswith(
                f"{os.path.realpath(link)}/"
            ):
                raise DataError(
                    f"imagefolder: {shown(link)} leads back to a folder above it: remove the link"
                )
        walked.append((os.path.relpath(place, root), not folders, names))
    for place, is_last, names in sorted(walked):
        here = [f"{place}/{name}" for name in listing.pictures(names)]
        found += here
        if not here and is_last and listing.is_picture(place):
            hollow.append(Skipped(shown(place), "a folder, not a picture"))
    return found, hollow


def _differences(root: Path, folders: dict[str, str], classes: dict[str, list[str]]) -> list[str]:
    """What the splits' classes lack of each other's: a model has one output a class."""
    wrong = []
    for split, names in classes.items():
        mine = {_composed(name) for name in names}
        for other, others in classes.items():
            wrong += [
                f"{root / folders[split]} has no class folder '{shown(name)}', which"
                f" {root / folders[other]} has: every split needs the same classes"
                for name in others
                if _composed(name) not in mine
            ]
    return wrong


def _is_split_already(root: Path, folder: str, names: list[str]) -> list[str]:
    """train/ and val/ taken for two classes would train, to a good accuracy, on nonsense."""
    inner = [
        {e.name for e in os.scandir(root / name) if e.is_dir() and is_data(e.name)}
        for name in names
    ]
    if not inner[0] or any(other != inner[0] for other in inner):
        return []
    return [
        f"the folders {', '.join(map(shown, names))} of {root} hold class folders themselves: leave"
        f" out train.data.fractions, or name one of them, as in folder: {folder}/{names[0]}"
    ]


def _by_fractions(files: list[File], fractions: list[float], seed: int) -> dict[str, list[File]]:
    """Split index by index as torch.utils.data.random_split splits an ImageFolder."""
    import torch  # its generator alone decides the order; 2 s to import, needed here only
    from torch.utils.data import random_split

    lengths = [int(len(files) * fraction) for fraction in fractions]
    for i in range(len(files) - sum(lengths)):  # as random_split hands out what rounding left
        lengths[i % len(lengths)] += 1
    names = ("train", "test") if len(fractions) == 2 else ("train", "val", "test")
    if 0 in lengths:
        raise DataError(
            f"imagefolder: {len(files)} pictures by fractions {fractions} leave a split without any"
        )
    parts = random_split(range(len(files)), lengths, generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    return {name: [files[i] for i in part.indices] for name, part in zip(names, parts, strict=True)}


def _read(
    contents: Contents,
    config: ImageFolderData,
    fit: Fit,
    splits: dict[str, list[File]],
    skipped: list[Skipped],
) -> Iterator[Piece]:
    """All pieces in the order of the splits.

    Raises raw.DataError, at the end, for all pictures that cannot be read.
    """
    total, done = sum(map(len, splits.values())), 0
    began = told = time.monotonic()
    parts = [(split, part) for split, files in splits.items() for part in _parts(files, contents)]

    def piece(part: tuple[str, list[File]]) -> Piece:
        return _piece(
            contents,
            *part,
            fit,
            encoded=config.random_resized_crop is not None and part[0] == "train",
        )

    if skipped:
        yield Piece(
            "train",
            *_nothing(fit),
            encoded=[] if config.random_resized_crop else None,
            skipped=skipped,
        )
    bad, good = list(skipped), dict.fromkeys(splits, 0)
    for (split, files), made in zip(parts, _in_order(piece, parts), strict=True):
        bad += made.skipped
        good[split] += len(made.labels)
        done += len(files)
        if time.monotonic() > told + PROGRESS_S:
            told = time.monotonic()
            left = (told - began) / done * (total - done)
            print(
                f"{config.folder}: {done:,} of {total:,} pictures, {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )
        yield made
    if bad and not config.skip_bad:
        raise DataError(_complaint(contents.root, total, bad))
    if empty := [split for split, count in good.items() if not count]:
        raise DataError(
            _complaint(contents.root, total, bad) + f"\nnothing is left of: {', '.join(empty)}"
        )


def _parts(files: list[File], contents: Contents) -> Iterator[list[File]]:
    part, size = [], 0
    for file in files:
        own = contents.known[file.name].size
        if part and (len(part) == AT_ONCE or size + own > AT_ONCE_BYTES):
            yield part
            part, size = [], 0
        part.append(file)
        size += own
    if part:
        yield part


def _complaint(root: Path, total: int, bad: list[Skipped]) -> str:
    lines = [f"imagefolder: {len(bad)} of {total} pictures in {root} cannot be read:"]
    lines += [f"  {name}: {reason}" for name, reason in bad[:MOST_SHOWN]]
    lines += [f"  and {len(bad) - MOST_SHOWN} more"] if len(bad) > MOST_SHOWN else []
    return "\n".join(
        [*lines, "mend or remove them, or train without them by `train: {data: {skip_bad: true}}`"]
    )


def _nothing(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    return np.zeros((0, fit.channels, fit.size, fit.size), np.uint8), np.zeros(0, np.int64)


def _piece(contents: Contents, split: str, files: list[File], fit: Fit, *, encoded: bool) -> Piece:
    images, labels, kept, skipped = [], [], [], []
    seen = Seen()
    for file in files:
        try:
            data = contents.read(file.name)
            picture = pictures.look(data, fit.channels, fit.most_pixels)
            images.append(fit(picture.image))
        except (BadPicture, Unreadable) as error:
            skipped.append(Skipped(shown(file.name), str(error)))
            continue
        seen = seen.and_of(seen_in(picture))
        labels.append(file.label)
        if encoded:
            kept.append((shown(file.name), data))
    if not images:
        return Piece(split, *_nothing(fit), encoded=kept if encoded else None, skipped=skipped)
    return Piece(
        split,
        np.stack(images),
        np.array(labels, np.int64),
        encoded=kept if encoded else None,
        skipped=skipped,
        seen=seen,
    )


def _in_order(
    function: Callable[[tuple[str, list[File]]], Piece], parts: list[tuple[str, list[File]]]
) -> Iterator[Piece]:
    """`map` by threads, which Pillow lets run while it decodes; holds few results at a time,
    however slow the disk is.
    """
    threads = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque = deque()
        for part in parts:
            waiting.append(pool.submit(function, part))
            if len(waiting) > threads + 2:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
