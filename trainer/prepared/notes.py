"""What a user should know of a prepared set, in sentences."""

from __future__ import annotations

from typing import Any

from trainer.prepared.contents import Contents
from trainer.prepared.pictures import FULL, Picture, shown
from trainer.prepared.raw import Seen

# 12-bit values in files of 16 bits fill a sixteenth of the range, 14-bit ones a quarter
NARROW = (FULL + 1) // 4


def seen_in(picture: Picture) -> Seen:
    """What decoding one image has shown."""
    if picture.values is None:
        return Seen(int(picture.several))
    return Seen(int(picture.several), 1, *picture.values)


def of_copies(files: Contents) -> list[str]:
    """Which splits hold images that are trained on, so that their accuracy says too much."""
    found = []
    for split in ("val", "test"):
        copies = files.in_training_too(split) if split in files.images else []
        if copies:
            name, same = map(shown, copies[0])
            found.append(
                f"{len(copies):,} image(s) of the {split} split are trained on, too: {name} is"
                f" {same}" + (", ..." if len(copies) > 1 else "")
            )
    return found


def of_decoding(manifest: dict[str, Any]) -> list[str]:
    """What the pixels no longer show: further frames, and files of 16 bits that use a small part of
    them.
    """
    if "seen" not in manifest:  # prepared by an earlier version
        return []
    seen = Seen(**manifest["seen"])
    found = []
    if seen.several:
        found.append(
            f"{seen.several:,} image(s) have more frames or pages than one: the first is taken"
        )
    if seen.wide and seen.largest - seen.least < NARROW:
        levels = f"{seen.least * 255 // FULL} to {seen.largest * 255 // FULL}"
        found.append(
            f"{seen.wide:,} image(s) of 16 bits use only the values {seen.least} to {seen.largest}"
            f" of 0 to {FULL}: of 8 bits that is {levels}, nearly one grey: scale them to the full"
            " range to train on more"
        )
    return found
