"""The prepared data on a node's own disk: copied there once a node, and checked.

Standard library only: runs on compute nodes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from glob import escape
from pathlib import Path

from trainer.config.files.json_files import read_json
from trainer.config.files.lock import Lock, LockLost

WAIT_S = 3600.0  # for another job of this node that copies the same set, and is alive
CHUNK_BYTES = 1 << 22


class NotCopied(Exception):
    """The data cannot be had on the node's disk; the message says why.

    The shared copy serves as well, slower.
    """


def copy(prepared: Path, scratch: Path, held: Lock | None = None) -> Path:
    """The set `prepared` below `scratch`, each file as its manifest says.

    Appears by one rename, under a lock.

    A copy that another job of the node has made is checked by its sizes, one that is made now by
    its sha256s too. held: a lock of this process, which is renewed meanwhile. Raises NotCopied, and
    LockLost where `held` was lost.
    """
    manifest = read_json(prepared / "manifest.json")
    if not manifest:
        raise NotCopied(f"there is no manifest in {prepared}")
    target = scratch / f"batchyard-{os.getuid()}" / f"{prepared.name}-{manifest['sha256'][:8]}"
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock, end = Lock(target.with_name(f".{target.name}.lock")), time.monotonic() + WAIT_S
        while not lock.acquire():
            if time.monotonic() > end:
                raise NotCopied(f"{lock.owner()} has been copying {target} for {WAIT_S:.0f} s")
            _renew(held)
            time.sleep(0.1)
        try:
            if not _is_whole(target, manifest):
                _make(prepared, target, manifest, lock, held)
        except LockLost as error:
            if held is not None:
                held.verify()
            raise NotCopied(str(error)) from None
        finally:
            lock.release()
    except OSError as error:
        raise NotCopied(f"{error.strerror or error}: {error.filename or target}") from None
    return target


def _is_whole(folder: Path, manifest: dict[str, dict[str, dict[str, int]]]) -> bool:
    files = manifest["files"]
    return read_json(folder / "manifest.json") == manifest and all(
        (folder / name).exists() and (folder / name).stat().st_size == file["size"]
        for name, file in files.items()
    )


def _renew(held: Lock | None) -> None:
    """A copy may take longer than the lease of the run that waits for it. Raises LockLost."""
    if held is not None:
        with contextlib.suppress(OSError):  # of the shared disk, which may fail for a moment
            held.renew()


def _make(
    prepared: Path,
    target: Path,
    manifest: dict[str, dict[str, dict[str, str]]],
    lock: Lock,
    held: Lock | None,
) -> None:
    # what a killed copy left goes first; a copy that lost its lock knows its own folder by the
    # nonce
    for old in (*target.parent.glob(f".{escape(target.name)}.*tmp"), target):
        shutil.rmtree(old, ignore_errors=True)
    temporary = target.with_name(f".{target.name}.{lock.nonce}.tmp")
    temporary.mkdir()
    try:
        for name, file in manifest["files"].items():
            if (found := _copy_file(prepared / name, temporary / name, lock, held)) != file[
                "sha256"
            ]:
                raise NotCopied(
                    f"{prepared / name} came over as {found[:12]}, its manifest says"
                    f" {file['sha256'][:12]}"
                )
        shutil.copyfile(prepared / "manifest.json", temporary / "manifest.json")
        lock.verify()
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_file(source: Path, target: Path, lock: Lock, held: Lock | None) -> str:
    """Returns the sha256 of what was written."""
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while piece := read.read(CHUNK_BYTES):
            digest.update(piece)
            write.write(piece)
            lock.renew()
            _renew(held)
    return digest.hexdigest()
