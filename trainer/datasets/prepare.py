"""Prepared data sets on disk: uint8 pictures (or encoded ones), labels and a manifest, made once,
mapped by every rank.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from glob import escape
from pathlib import Path
from typing import Any

from trainer.config.data import DataConfig
from trainer.config.files.json_files import read_json
from trainer.config.files.lock import Lock, LockLost
from trainer.datasets.find import dataset
from trainer.prepared.errors import DataError
from trainer.prepared.notes import of_copies, of_decoding
from trainer.prepared.pictures import MOST_PIXELS
from trainer.prepared.raw import Allowed, Source
from trainer.prepared.writing import write

WAIT_S = 6 * 3600.0  # for another process that prepares the same data, and is alive


def prepare(
    config: DataConfig,
    data_dir: Path,
    cache_dir: Path,
    *,
    allow_unverified: bool = False,
    started: dict[str, Any] | None = None,
    most_pixels: int | None = None,
) -> dict[str, Any]:
    """Converts the data set where the cache lacks it; returns its manifest with `path`, `made`
    (whether it was made now), `unverified` (the raw files that differ from the published
    checksums), `sources` (the sha256 of all that it is made from) and `notes` (what a user should
    know of it).

    most_pixels: of an image that is decoded; None: pictures.MOST_PIXELS. started: what this
    returned when the run was started, which keeps its set where the same sources are prepared
    otherwise now.

    A set is known by the contents of its files, and its folder is named by them. It appears by one
    rename, under a lock: an interrupted prepare leaves nothing that a later one would take for
    whole, and of two at once the second waits for the first.

    Raises raw.DataError, and OSError where the disk is full.
    """
    of = dataset(config.name)
    source = of.source(config, data_dir, Allowed(allow_unverified, most_pixels or MOST_PIXELS))
    content = dict(source.content)
    if source.files:
        source.files.learn(cache_dir / "contents")
        content["files"] = source.files.digest()
    sources = _digest(b"", content)
    path = (
        cache_dir / "prepared" / f"{config.name}-{_digest(str(of.VERSION).encode(), content)[:8]}"
    )
    manifest = (
        _kept(started, sources, config, data_dir)
        if started and started["path"] != str(path)
        else None
    )
    made = False
    if manifest and started:
        path = Path(started["path"])
    else:
        manifest, made = _found_or_made(path, config.name, source)
    notes = [
        *source.notes,
        *(of_copies(source.files) if source.files else ()),
        *of_decoding(manifest),
    ]
    return {
        **manifest,
        "path": str(path),
        "unverified": list(source.unverified),
        "sources": sources,
        "notes": notes,
        "made": made,
    }


def _found_or_made(path: Path, name: str, source: Source) -> tuple[dict[str, Any], bool]:
    """(the manifest of the set in `path`, whether it was made now)."""
    if manifest := read_json(path / "manifest.json"):
        return manifest, False
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, began = Lock(path.with_name(f".{path.name}.lock")), time.monotonic()
    while not lock.acquire():
        if time.monotonic() > began + WAIT_S:
            raise DataError(
                f"another process has been preparing {path} for {WAIT_S:.0f} s: {lock.owner()}"
            )
        time.sleep(0.1)
    temporary = path.with_name(f".{path.name}.{lock.nonce}.tmp")
    try:
        if manifest := read_json(path / "manifest.json"):  # made while we waited
            return manifest, False
        shutil.rmtree(path, ignore_errors=True)  # cleared by hand in part
        # by a prepare that was killed
        for left in path.parent.glob(f".{escape(path.name)}.*tmp"):
            shutil.rmtree(left, ignore_errors=True)
        temporary.mkdir()
        manifest = write(temporary, name, source, lock.renew)
        lock.verify()
        temporary.rename(path)
    except LockLost as error:
        raise DataError(f"another process prepares {path} now: {error}; submit again") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        lock.release()
    return manifest, True


def _digest(version: bytes, content: dict[str, bytes]) -> str:
    digest = hashlib.sha256(version)
    for name in sorted(content):
        digest.update(name.encode() + hashlib.sha256(content[name]).digest())
    return digest.hexdigest()


def _kept(
    started: dict[str, Any], sources: str, config: DataConfig, data_dir: Path
) -> dict[str, Any] | None:
    """The manifest of the set that a run was started with; None where it is gone, or was made from
    other sources.
    """
    path = Path(started["path"])
    manifest: dict[str, Any] | None = read_json(path / "manifest.json")
    if manifest is None or manifest["sha256"] != started["sha256"]:
        return None
    if "sources" in started:
        return manifest if started["sources"] == sources else None
    from trainer.datasets import earlier  # for runs of the first version alone

    return manifest if earlier.first_name(config, data_dir) == path.name else None
