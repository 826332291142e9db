"""Files by the sha256 of what they contain. What a stat shows to be unchanged is not read again.

Size and time alone do not tell: `rsync -t` and a restored backup leave another image under the same
size and time. Such a change moves the ctime, which nothing can set back.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from trainer.prepared.errors import DataError

AT_ONCE = 256  # files that a thread looks at before it takes others
THREADS = 16  # most of the time goes into waiting for the disk, or for a file server
# Two changes within a tick of a file system's clock have the same ctime: a file that has just
# changed is not remembered.
JUST_CHANGED_NS = 2_000_000_000
PROGRESS_S = 3.0
IDENTITY = struct.Struct("<QQQqq")  # device, inode, size, mtime_ns, ctime_ns
DIGEST_BYTES = 32


class Unreadable(Exception):
    """A file has no content; the message is the reason, in a few words."""


class Known(NamedTuple):
    """What is known of a file. digest: the sha256 of its content, empty where `problem` says why it
    cannot be read.

    identity: as long as it is the same, so is the digest; empty where that is not certain.
    """

    size: int
    digest: bytes
    problem: str = ""
    identity: bytes = b""


class Contents:
    """The files of a data set, by split and by name below its folder.

    Nothing is looked at before `learn`, which stats every file once.
    """

    def __init__(
        self,
        root: Path,
        names: Mapping[str, Sequence[str]],
        images: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """images: those of `names` that are images; None: all."""
        self.root, self.names = root, names
        self.images = names if images is None else images
        self.known: dict[str, Known] = {}

    def learn(self, memory: Path) -> None:
        """Finds the sha256 of each file: in `memory`, a folder, where its identity is there, else
        by reading it.

        memory gains what was read; where it cannot be written, the next call reads again.
        """
        names = list(dict.fromkeys(name for listed in self.names.values() for name in listed))
        path = memory / f"{hashlib.sha256(self._listing()).hexdigest()[:16]}.bin"
        remembered = _remembered(path)
        parts = [names[start : start + AT_ONCE] for start in range(0, len(names), AT_ONCE)]
        began = reported = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            looked = pool.map(
                lambda part: [_look(self.root, name, remembered) for name in part], parts
            )
            for part, found in zip(parts, looked, strict=True):
                self.known.update(zip(part, found, strict=True))
                if time.monotonic() > reported + PROGRESS_S:
                    reported = time.monotonic()
                    left = (reported - began) / len(self.known) * (len(names) - len(self.known))
                    line = (
                        f"{self.root.name}: {len(self.known):,} of {len(names):,} files looked at,"
                        f" {left:.0f} s left"
                    )
                    print(line, file=sys.stderr, flush=True)
        entries = {known.identity: known.digest for known in self.known.values() if known.identity}
        if entries != remembered:
            _remember(path, entries)

    def _listing(self) -> bytes:
        """What tells this set of folders from others, so that one does not push another out of the
        memory.
        """
        folders = {name.rpartition("/")[0] for listed in self.names.values() for name in listed}
        return b"\0".join(map(os.fsencode, [str(self.root.absolute()), *sorted(folders)]))

    def digest(self) -> bytes:
        """The sha256 over all files in their order: splits, names and contents."""
        total = hashlib.sha256()
        for split, listed in self.names.items():
            for name in listed:
                known = self.known[name]
                total.update(
                    f"{split} {known.digest.hex() or 'unreadable'} ".encode()
                    + os.fsencode(name)
                    + b"\0"
                )
        return total.digest()

    def in_training_too(self, split: str) -> list[tuple[str, str]]:
        """Images of a split whose very contents are trained on: the name of each, and that of a
        train image.
        """
        trained = {self.known[name].digest: name for name in reversed(self.images["train"])}
        found = [
            (name, trained.get(self.known[name].digest))
            for name in self.images[split]
            if self.known[name].digest
        ]
        return [(name, same) for name, same in found if same is not None]

    def read(self, name: str) -> bytes:
        """A file's content.

        Raises Unreadable, and raw.DataError where it is not what `learn` found.
        """
        known, path = self.known[name], self.root / name
        if known.problem:
            raise Unreadable(known.problem)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Unreadable(error.strerror or str(error)) from None
        if hashlib.sha256(content).digest() != known.digest:
            raise DataError(
                f"{path} was changed while it was prepared: submit again once nothing writes to"
                f" {self.root}"
            )
        return content


def _look(root: Path, name: str, remembered: Mapping[bytes, bytes]) -> Known:
    path = os.path.join(root, name)
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for without end
            return Known(0, b"", "not a file")
        identity = _identity(found)
        if digest := remembered.get(identity):
            return Known(found.st_size, digest, "", identity)
        certain = time.time_ns() - found.st_ctime_ns > JUST_CHANGED_NS
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            certain = certain and _identity(os.fstat(file.fileno())) == identity
        return Known(found.st_size, digest, "", identity if certain else b"")
    except OSError as error:
        gone = os.path.islink(path) and not os.path.exists(path)
        return Known(0, b"", "a link to nothing" if gone else error.strerror or str(error))


def _identity(found: os.stat_result) -> bytes:
    size = found.st_size
    return IDENTITY.pack(found.st_dev, found.st_ino, size, found.st_mtime_ns, found.st_ctime_ns)


def _remembered(path: Path) -> dict[bytes, bytes]:
    """Digests by identity; none where the file is missing or corrupt."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    total, entries = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(entries).digest() != total:
        return {}
    step = IDENTITY.size + DIGEST_BYTES
    starts = range(0, len(entries), step)
    return {
        entries[at : at + IDENTITY.size]: entries[at + IDENTITY.size : at + step] for at in starts
    }


def _remember(path: Path, entries: Mapping[bytes, bytes]) -> None:
    content = b"".join(identity + digest for identity, digest in entries.items())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(hashlib.sha256(content).digest() + content)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
