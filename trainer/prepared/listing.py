"""Which names below a folder are data: images by their endings, and never what systems and programs
leave there.
"""

from __future__ import annotations

import os
from collections import Counter

from trainer.prepared import pictures

# Beside all names with a dot before, as .ipynb_checkpoints, .Trash-1000 and macOS's ._* are.
NEVER_DATA = frozenset(
    {
        "@eaDir",
        "@Recycle",
        "#recycle",  # Synology, QNAP
        "lost+found",
        "__MACOSX",
        "$RECYCLE.BIN",
        "System Volume Information",
    }
)
MOST_NAMED = 5


def is_data(name: str) -> bool:
    """Whether a file or folder of this name can be data."""
    return not name.startswith(".") and name not in NEVER_DATA


class Listing:
    """Tells images from the other names of a folder, and counts what it leaves out."""

    def __init__(self) -> None:
        self.never: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()  # of files in the folders of images

    def data(self, names: list[str]) -> list[str]:
        """Those that can be data, sorted."""
        kept = []
        for name in sorted(names):
            if self.is_data(name):
                kept.append(name)
            else:
                self.never["._*" if name.startswith("._") else name] += 1
        return kept

    def is_data(self, name: str) -> bool:
        return is_data(name)

    def is_picture(self, name: str) -> bool:
        """By its ending."""
        return name.lower().endswith(pictures.EXTENSIONS)

    def pictures(self, names: list[str]) -> list[str]:
        """The files of a folder of images that are images, sorted; the others are counted by their
        endings.
        """
        kept = []
        for name in self.data(names):
            if self.is_picture(name):
                kept.append(name)
            else:
                self.endings[os.path.splitext(name)[1].lower() or "no ending"] += 1
        return kept

    def notes(self) -> list[str]:
        """What was left out, a line each kind."""
        found = []
        if self.never:
            found.append(f"left out, for such names are never data: {counted(self.never)}")
        if self.endings:
            found.append(f"left out, for such endings are no image's here: {counted(self.endings)}")
        return found


def counted(found: Counter[str]) -> str:
    """The most frequent ones with their numbers, as in `.txt (12), .npy (3), and 2 more`."""
    most = sorted(found.items(), key=lambda item: (-item[1], item[0]))[:MOST_NAMED]
    named = [f"{pictures.shown(name)} ({count:,})" for name, count in most]
    rest = found.total() - sum(count for _, count in most)
    return ", ".join(named) + (f", and {rest:,} more" if rest else "")
