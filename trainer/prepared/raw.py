"""A data set as it was found: raw files fetched, their checksums held, and what to do where they
are not there.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trainer.prepared.errors import DataError

if TYPE_CHECKING:
    from trainer.prepared.contents import Contents

ALL_THE_SAME = "all the same by `execution: {allow_unverified_data: true}`"
ELSEWHERE = (
    "by --data-dir, paths.data in the site file, or BATCHYARD_DATA; the job `digits` runs without"
    " any download"
)


class Allowed(NamedTuple):
    """What a run takes though it is refused else. most_pixels: of an image that is decoded."""

    unverified: bool
    most_pixels: int


class Skipped(NamedTuple):
    """A picture that cannot be read or used, and why."""

    name: str
    reason: str


class Seen(NamedTuple):
    """What decoding has shown of images, and their pixels no longer do. several: files with more
    frames than the first.

    wide: images of 16 bits, whose values lie between `least` and `largest`.
    """

    several: int = 0
    wide: int = 0
    least: int = 65535
    largest: int = 0

    def and_of(self, other: Seen) -> Seen:
        """Of both together."""
        ends = min(self.least, other.least), max(self.largest, other.largest)
        return Seen(self.several + other.several, self.wide + other.wide, *ends)


class Pixels(NamedTuple):
    """What masks hold, int64 [256] each: pixels of each class in those that are kept, and in all
    that were listed; scenes: in how many of those kept the class is. void: masks in which no pixel
    has a class.
    """

    kept: np.ndarray
    listed: np.ndarray
    scenes: np.ndarray
    void: int

    def and_of(self, other: Pixels) -> Pixels:
        """Of both together."""
        return Pixels(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


class Piece(NamedTuple):
    """Some pictures of a split, in its order. images: uint8 [n, C, H, W], labels: int64 [n].

    Of a table: its rows, float32 [n, features, 1, 1], and targets, float32 [n, targets].

    encoded: (name, file's bytes) of each, where these are kept instead of `images`, which are then
    their evaluation's form. Of a segmentation labels are masks, uint8 [n, H, W]; encoded_masks:
    their files' bytes, kept beside `encoded`.
    """

    split: str
    images: np.ndarray
    labels: np.ndarray
    encoded: Sequence[tuple[str, bytes]] | None = None
    skipped: Sequence[Skipped] = ()
    encoded_masks: Sequence[bytes] | None = None
    seen: Seen = Seen()
    pixels: Pixels | None = None


class Source(NamedTuple):
    """A data set that was found. content: what decides the prepared bytes, by name. pieces: made as
    they are asked for.

    details: stands in the manifest beside what is in every one. unverified: files that differ from
    the published checksums. files: those that decide the prepared bytes by their contents, too;
    they have been learnt before the first piece is asked for. notes: what a user should know of
    what was found, a line each.
    """

    classes: list[str]
    content: Mapping[str, bytes]
    pieces: Iterator[Piece]
    details: Mapping[str, Any] = MappingProxyType({})
    unverified: Sequence[str] = ()
    files: Contents | None = None
    notes: Sequence[str] = ()


class Files(NamedTuple):
    """Raw files by name, and the names of those that differ from the published checksums, taken as
    allowed.
    """

    content: dict[str, bytes]
    unverified: list[str]


def read(
    folder: Path,
    published: Mapping[str, tuple[str, str]],
    *,
    what: str,
    allow_unverified: bool,
    fetch: Callable[[], None],
) -> Files:
    """The files of a folder. published: name -> (algorithm, hex digest). fetch: brings them; called
    where one is missing.

    Raises DataError.
    """
    missing = [name for name in published if not (folder / name).is_file()]
    if missing:
        print(f"{what}: fetching into {folder.parent} ...", file=sys.stderr)
        try:
            fetch()
        except Exception as error:  # a library's download fails in many ways
            reason = f"{type(error).__name__}: {error}"
        else:
            reason = "the download did not bring them"
        missing = [name for name in published if not (folder / name).is_file()]
        if missing:
            raise DataError(
                f"{what}: {', '.join(missing)} not in {folder}, nor could be fetched ({reason}). "
                f"Put the files there, or name their folder {ELSEWHERE}"
            )
    content = {name: (folder / name).read_bytes() for name in published}
    wrong = [
        n
        for n, (algorithm, digest) in published.items()
        if hashlib.new(algorithm, content[n]).hexdigest() != digest
    ]
    if wrong:
        refusal = (
            f"{what}: {', '.join(wrong)} in {folder} differ from the published checksums. "
            f"Remove them to fetch them again, or train on them {ALL_THE_SAME}"
        )
        accept(
            refusal,
            f"{what}: {len(wrong)} file(s) differ from the published checksums",
            allowed=allow_unverified,
        )
    return Files(content, wrong)


def accept(refusal: str, told: str, *, allowed: bool) -> None:
    """Data that are not the published ones: refused, or told as taken. Raises DataError."""
    if not allowed:
        raise DataError(refusal)
    print(f"{told}, taken as allowed", file=sys.stderr)
