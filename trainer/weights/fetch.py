"""Weights that a run begins with, brought into the cache and held against their sha256 before
anything is queued. Prepare imports it: torch only where torchvision's names need it.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from trainer.config.weights import Weights
from trainer.prepared.errors import DataError

ELSEWHERE = "by --data-dir, paths.data in the site file, or BATCHYARD_DATA"
# how torchvision's file names hold the beginning of their sha256
HASH = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")


def bring(weights: Weights, data_dir: Path, cache_dir: Path) -> dict[str, Any]:
    """{path, sha256, bytes}: a file in `cache_dir`/weights, whose content is what the settings say.

    Not for `run`.

    Raises DataError, and OSError where the disk is full.
    """
    folder = cache_dir / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    path = (
        of_torchvision(weights.torchvision, folder)
        if weights.torchvision
        else of_file(weights, data_dir, folder)
    )
    return {"path": str(path), "sha256": sha256(path), "bytes": path.stat().st_size}


def of_file(weights: Weights, data_dir: Path, folder: Path) -> Path:
    """A copy of a local file, named by its sha256, so that nodes and containers find it where the
    cache is.
    """
    assert weights.file is not None and weights.sha256 is not None
    kept = folder / f"{weights.sha256[:16]}{Path(weights.file).suffix}"
    if kept.exists() and sha256(kept) == weights.sha256:
        return kept
    given = data_dir / weights.file
    if not given.is_file():
        raise DataError(
            f"train.weights: there is no file {given}. Put it there, or name the folder that holds"
            f" it {ELSEWHERE}"
        )
    copy(given, kept)
    if (found := sha256(kept)) != weights.sha256:
        kept.unlink()
        raise DataError(
            f"train.weights: {given} has the sha256 {found}, the job says {weights.sha256}: another"
            " file?"
        )
    return kept


def of_torchvision(name: str, folder: Path) -> Path:
    """The file of one of torchvision's weights: from the cache, else torch.hub's own,
    else fetched.
    """
    try:
        from torchvision import models
    except ImportError:
        raise DataError(
            f"train.weights.torchvision: {name} is one of torchvision's: install the extra 'vision'"
        ) from None
    known = [
        str(weights)
        for model in models.list_models()
        for weights in models.get_model_weights(model)
    ]
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        family = [k for k in known if k.split(".")[0] == name.split(".")[0]]
        raise DataError(
            f"train.weights.torchvision: torchvision has no {name}"
            + (
                f"; did you mean {' or '.join(near)}?"
                if near
                else f"; of this model it has {', '.join(family) or 'none'}"
            )
        )
    return fetch(models.get_weight(name).url, folder)


def fetch(url: str, folder: Path) -> Path:
    """The file behind `url`, whose name holds the beginning of its sha256, in `folder`; by one
    rename. Raises DataError.
    """
    from torch import hub

    name = url.rpartition("/")[2]
    begins = found.group(1) if (found := HASH.search(name)) else ""
    path, theirs = folder / name, Path(hub.get_dir()) / "checkpoints" / name
    if not path.exists() and theirs.exists():
        copy(theirs, path)
    if not path.exists():
        print(f"weights: fetching {url} ...", file=sys.stderr)
        try:
            hub.download_url_to_file(url, str(path), hash_prefix=begins or None, progress=False)
        except Exception as error:  # a download fails in many ways, a wrong hash among them
            raise DataError(
                f"train.weights: {name} is not in {folder}, nor could be fetched from {url}"
                f" ({type(error).__name__}: {error}). Put the file there"
            ) from None
    if not (digest := sha256(path)).startswith(begins):
        raise DataError(
            f"train.weights: {path} has the sha256 {digest}, its name says {begins}...: remove it"
            " to fetch it again"
        )
    return path


def copy(source: Path, target: Path) -> None:
    """Appears by one rename."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """64 hex digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
