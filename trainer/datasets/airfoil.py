"""NASA's airfoil self-noise table: DATA/airfoil/airfoil_self_noise.dat (Brooks, Pope, Marcolini
1989, by UCI; 1,503 rows).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np

from trainer.config.tables import AirfoilData
from trainer.prepared import delimited, raw
from trainer.prepared.errors import DataError
from trainer.prepared.raw import Allowed, Piece, Source

# raised when `convert` gives other bytes; 2: a column that never changes is zero, where it was NaN
VERSION = 2
NAME = "airfoil_self_noise.dat"
# as Dive into Deep Learning holds it
PUBLISHED = {NAME: ("sha1", "76e5be1548fd8222e5074cf0faae75edff8cf93f")}
URL = f"http://d2l-data.s3-accelerate.amazonaws.com/{NAME}"
TRAIN_SAMPLES = 1500
COLUMNS = 6


def source(config: AirfoilData, data_dir: Path, allowed: Allowed) -> Source:
    """The file, five features and the sound level in each line. Raises raw.DataError."""

    def fetch() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with urlopen(URL, timeout=20) as answer:
            (folder / NAME).write_bytes(answer.read())

    folder = data_dir / "airfoil"
    try:
        content, unverified = raw.read(
            folder, PUBLISHED, what="airfoil", allow_unverified=allowed.unverified, fetch=fetch
        )
    except DataError as error:
        raise DataError(
            f"{error}; the job `optimizers_airfoil_made` makes a table of its shape"
        ) from None
    table, notes = read(content[NAME])
    return Source(["sound level"], content, convert(table), unverified=unverified, notes=notes)


def read(content: bytes) -> tuple[np.ndarray, list[str]]:
    """(float32 [1503, 6], notes): the rows, every column less its mean over all rows, over its
    deviation. Raises DataError.
    """
    try:
        table = delimited.read(content, COLUMNS)
        if len(table.values) <= TRAIN_SAMPLES:
            raise DataError(
                f"is a table of {len(table.values)} x {COLUMNS} numbers; expected 1503 x {COLUMNS}"
            )
        rows, notes = delimited.standardised(table)
    except DataError as error:
        raise DataError(f"airfoil: {NAME} {error}") from None
    return rows, [f"airfoil: {NAME}: {note}" for note in notes]


def convert(table: np.ndarray) -> Iterator[Piece]:
    """Rows float32 [N, 5, 1, 1], targets float32 [N, 1]."""
    for split, rows in (("train", table[:TRAIN_SAMPLES]), ("test", table[TRAIN_SAMPLES:])):
        yield Piece(split, rows[:, :5, None, None], rows[:, 5:])
