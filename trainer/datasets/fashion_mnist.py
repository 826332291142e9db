"""Fashion-MNIST in torchvision's layout: DATA/FashionMNIST/raw/ (Xiao, Rasul, Vollgraf,
arXiv:1708.07747; MIT licence).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from trainer.config.data import FashionMNISTData
from trainer.prepared import raw
from trainer.prepared.raw import Allowed, Piece, Source

VERSION = 1
CLASSES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
# sha256 of the four files after gunzip, where the publisher prints the md5 of the archives alone:
# the same that others hold who unpack the publisher's archives, as github.com/EntroMorphic/sstt
# does in its Makefile.
PUBLISHED = {
    "train-images-idx3-ubyte": (
        "sha256",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    "train-labels-idx1-ubyte": (
        "sha256",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    "t10k-images-idx3-ubyte": (
        "sha256",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    "t10k-labels-idx1-ubyte": (
        "sha256",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}


def source(config: FashionMNISTData, data_dir: Path, allowed: Allowed) -> Source:
    """The four IDX files. Raises raw.DataError."""

    def fetch() -> None:
        from torchvision.datasets import FashionMNIST  # 1.7 s to import, and an extra

        data_dir.mkdir(parents=True, exist_ok=True)
        FashionMNIST(str(data_dir), download=True)

    folder = data_dir / "FashionMNIST" / "raw"
    content, unverified = raw.read(
        folder, PUBLISHED, what="Fashion-MNIST", allow_unverified=allowed.unverified, fetch=fetch
    )
    return Source(CLASSES, content, convert(content), unverified=unverified)


def convert(content: dict[str, bytes]) -> Iterator[Piece]:
    """Pictures uint8 [N, 1, 28, 28] in the files' own order."""

    def read(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        images = np.frombuffer(content[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16).reshape(
            -1, 1, 28, 28
        )
        return images, np.frombuffer(
            content[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8
        ).astype(np.int64)

    yield Piece("train", *read("train"))
    yield Piece("test", *read("t10k"))
