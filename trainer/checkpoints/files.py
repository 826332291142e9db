"""Checkpoints on disk: what one is made of, how the newest whole one is found, how a bad one is
moved aside and named.

`checkpoints/step-<n>.<attempt>/` holds weights.pt (the model's state dict), trainer.pt (everything
else that decides the rest of the run), both as torch.save writes and `weights_only` loads them, and
manifest.json, written last: size and sha256 of each file, and of itself. A directory without a
whole manifest is no checkpoint. trainer.checkpoints.writer writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

# Raised when an older reader must not go on from a newer checkpoint. A key that it may ignore does
# not raise it.
SCHEMA = 1
FILES = ("weights.pt", "trainer.pt")
NAME = re.compile(r"step-(\d+)\.(?!.*\.tmp$).+")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, loaded on the CPU."""

    path: Path
    manifest: dict[str, Any]
    weights: dict[str, Tensor]
    trainer: dict[str, Any]


class NewerCheckpoint(Exception):
    """A newer version wrote it: neither read nor moved aside, for its work would be lost."""


class NoCheckpoint(Exception):
    """The run has no such checkpoint, or none that is whole; the message is for a person."""


def load_newest(run: RunDir) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose hashes are right, and a line `<directory>: <what is wrong>` for
    each that was passed over.

    Changes nothing on disk. Raises NewerCheckpoint.
    """
    complaints: list[str] = []
    for path in list_newest_first(run):
        try:
            return load(path), complaints
        except (OSError, ValueError) as error:
            complaints.append(f"{path.name}: {error}")
    return None, complaints


def load(path: Path) -> Checkpoint:
    """Verifies and loads one.

    Raises ValueError that names the file and what is wrong with it, OSError and NewerCheckpoint.
    """
    manifest = verify(path)
    try:
        weights, trainer = (
            torch.load(path / name, map_location="cpu", weights_only=True) for name in FILES
        )
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"torch does not load what was written: {error}") from error
    return Checkpoint(path, manifest, weights, trainer)


def find(run: RunDir, which: Literal["latest", "best"]) -> tuple[Checkpoint, list[str]]:
    """The newest whole checkpoint, or the best one, and a line for each that was passed over.

    Changes nothing on disk.

    Raises NoCheckpoint and NewerCheckpoint.
    """
    if which == "latest":
        found, complaints = load_newest(run)
        if found is None:
            raise NoCheckpoint(
                f"{run.run_id} has no whole checkpoint in {run.checkpoints}"
                + "".join(f"; {c}" for c in complaints)
            )
        return found, complaints
    link = run.checkpoints / "best"
    if not link.is_symlink():
        raise NoCheckpoint(
            f"{run.run_id} has no best checkpoint: only a run with train.data.validation"
            " chooses one"
        )
    try:
        return load(link.resolve(strict=True)), []
    except (OSError, ValueError) as error:
        raise NoCheckpoint(
            f"the best checkpoint of {run.run_id}, {os.readlink(link)}, is not whole: {error}"
        ) from error


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint.

    Raises ValueError that names the file and what is wrong with it; NewerCheckpoint.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.exists():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise ValueError(
                f"{name} has {file.stat().st_size} bytes, its manifest says {expected['size']}"
            )
        with file.open("rb") as opened:
            if hashlib.file_digest(opened, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"{name} has another sha256 than its manifest says")
    return manifest


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / "manifest.json").read_bytes()
        manifest = json.loads(text)
    except FileNotFoundError:
        raise ValueError("manifest.json is missing") from None
    except ValueError:
        raise ValueError(f"manifest.json is cut short or spoilt ({len(text)} bytes)") from None
    if not isinstance(manifest, dict):
        raise ValueError("manifest.json is no JSON object")
    schema = manifest.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerCheckpoint(
            f"{path} was written by a newer Batchyard (schema {schema}, this one reads up to"
            f" {SCHEMA}): continue with that one, or move the directory away to continue from an"
            " older checkpoint"
        )
    if manifest.get("sha256") != manifest_sha256(manifest):
        raise ValueError("manifest.json has another sha256 than it says")
    if missing := [name for name in FILES if name not in manifest["files"]]:
        raise ValueError(f"manifest.json does not name {' and '.join(missing)}")
    return manifest


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """64 hex digits over the canonical JSON of a manifest without its key `sha256`, which holds
    them.
    """
    content = {k: v for k, v in manifest.items() if k != "sha256"}
    return hashlib.sha256(
        json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def list_newest_first(run: RunDir) -> list[Path]:
    """Published checkpoints by step; of one step, the one written last first."""
    found = []
    for path in run.checkpoints.glob("step-*"):
        name = NAME.fullmatch(path.name)
        if name and path.is_dir():
            found.append((int(name[1]), path.stat().st_mtime_ns, path))
    return [path for _, _, path in sorted(found, reverse=True)]


def tidy(run: RunDir, newest: Checkpoint | None, complaints: list[str]) -> list[str]:
    """Before a run goes on from `newest`: what `load_newest` passed over is moved aside, what a
    killed writer left is removed, `latest` and `best` point at checkpoints that are there. Rank 0
    alone calls it. Returns lines to say.

    A disk that does not take a change stops nothing: that is one of the lines.
    """
    lines = [_move_aside(run.checkpoints, complaint) for complaint in complaints]
    for left in run.checkpoints.glob("*.tmp"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    try:
        lines += _settle_links(run, newest)
    except OSError as error:
        lines.append(f"latest and best could not be put right in {run.checkpoints}: {error}")
    return lines


def _move_aside(folder: Path, complaint: str) -> str:
    """Renames a bad checkpoint to a name that is never loaded."""
    bad = folder / complaint.split(":", 1)[0]
    aside, number = folder / f"bad-{bad.name}", 1
    while aside.exists():
        number += 1
        aside = folder / f"bad{number}-{bad.name}"
    try:
        bad.rename(aside)
    except OSError as error:
        return f"checkpoint passed over, but not moved aside ({error.strerror}): {complaint}"
    return f"checkpoint passed over and moved aside as {aside.name}: {complaint}"


def _settle_links(run: RunDir, newest: Checkpoint | None) -> list[str]:
    """A kill may come between a checkpoint's rename and its links; what a link names may have been
    bad. Returns lines to say.
    """
    best = [p for p in list_newest_first(run) if (read_json(p / "manifest.json") or {}).get("best")]
    lines = []
    for name, target in (
        ("latest", newest.path if newest else None),
        ("best", best[0] if best else None),
    ):
        link = run.checkpoints / name
        before = os.readlink(link) if link.is_symlink() else None
        if before != (target.name if target else None):
            if before:
                lines.append(
                    f"{name} pointed to {before}, now to {target.name if target else 'nothing'}"
                )
            if target:
                point(link, target)
            else:
                link.unlink()
    return lines


def point(link: Path, target: Path) -> None:
    """Swaps a symlink to a checkpoint beside it by one rename."""
    temporary = link.with_name(f".{link.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name)
    temporary.replace(link)


def size_bytes(state: Any) -> int:
    """Bytes of all tensors in `state`: about what a checkpoint of it takes on disk, known before
    the first one is written.
    """
    if isinstance(state, Tensor):
        return state.nbytes
    parts = (
        state.values()
        if isinstance(state, dict)
        else state
        if isinstance(state, list | tuple)
        else ()
    )
    return sum(size_bytes(part) for part in parts)


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """64 hex digits over name, dtype, shape and contiguous little-endian bytes of each tensor,
    names sorted, prefixes stripped.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(
            f"{name.removeprefix('module.')} {tensor.dtype} {list(tensor.shape)}\n".encode()
        )
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
