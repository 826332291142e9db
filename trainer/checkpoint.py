"""Checkpoints: written atomically, verified before they are loaded, a bad one moved aside and named.

`checkpoints/step-<n>.<attempt>/` holds weights.pt (the model's state dict), trainer.pt (everything else that decides the rest
of the run) and manifest.json, written last: size and sha256 of each file. A directory without a whole manifest is no checkpoint.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.config.layout import Attempt, RunDir, read_json, write_json

KEEP = 2


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, loaded on the CPU."""

    path: Path
    manifest: dict[str, Any]
    weights: dict[str, Tensor]
    trainer: dict[str, Any]


def to_cpu(value: Any) -> Any:
    """A deep copy with every tensor copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: to_cpu(v) for k, v in value.items()}
    if isinstance(value, list):
        return [to_cpu(v) for v in value]
    return value


def save(
    run: RunDir, attempt: Attempt, step: int, *, weights: dict[str, Tensor], trainer: dict[str, Any], manifest: dict[str, Any],
    best: bool = False,
) -> Path:
    """Publishes a checkpoint by one rename; afterwards `latest` (and `best`) points to it and all but the newest KEEP and the best
    are gone.

    weights and trainer: tensors, numbers, strings, and dicts and lists of them (what `weights_only` loads).
    manifest: added to the written one. Raises OSError where the disk does not take it; then nothing has changed.
    """
    final = run.checkpoints / f"step-{step}.{attempt.id}"
    temporary = final.with_name(final.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    files = {}
    for name, content in (("weights.pt", to_cpu(weights)), ("trainer.pt", to_cpu(trainer))):
        with (temporary / name).open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        files[name] = {"size": (temporary / name).stat().st_size, "sha256": file_sha256(temporary / name)}
    write_json(temporary / "manifest.json", {"global_step": step, "attempt": attempt.id, **manifest, "files": files})
    _fsync_directory(temporary)
    if final.exists():  # the same attempt at the same step: the same content
        shutil.rmtree(final)
    temporary.rename(final)
    _fsync_directory(run.checkpoints)
    for name in ("latest", "best") if best else ("latest",):
        link = run.checkpoints / f".{name}.tmp"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        link.replace(run.checkpoints / name)
    _fsync_directory(run.checkpoints)
    kept = (run.checkpoints / "best").resolve()
    for old in list_newest_first(run)[KEEP:]:
        if old.resolve() != kept:
            shutil.rmtree(old)
    return final


def load_newest(run: RunDir) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose hashes are right, and a line for each that was passed over. Changes nothing on disk."""
    complaints = []
    for path in list_newest_first(run):
        try:
            manifest = verify(path)
            parts = [torch.load(path / name, map_location="cpu", weights_only=True) for name in ("weights.pt", "trainer.pt")]
            return Checkpoint(path, manifest, *parts), complaints
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            complaints.append(f"{path.name}: {error}")
    return None, complaints


def quarantine(run: RunDir, complaints: list[str]) -> None:
    """Moves the checkpoints that `load_newest` passed over aside, under a name that is never loaded. One rank calls it."""
    for complaint in complaints:
        bad = run.checkpoints / complaint.split(":", 1)[0]
        if bad.exists():
            bad.rename(bad.with_name(f"bad-{bad.name}"))


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a whole checkpoint. Raises ValueError that names the file and what is wrong with it."""
    manifest = read_json(path / "manifest.json")
    if not isinstance(manifest, dict) or "files" not in manifest:
        raise ValueError("manifest.json is missing or cut short")
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.exists():
            raise ValueError(f"{name} is missing")
        if file.stat().st_size != expected["size"]:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, its manifest says {expected['size']}")
        if file_sha256(file) != expected["sha256"]:
            raise ValueError(f"{name} has another sha256 than its manifest says")
    return manifest


def list_newest_first(run: RunDir) -> list[Path]:
    """Published checkpoints by step; of one step, the one written last first."""
    found = [p for p in run.checkpoints.glob("step-*") if not p.name.endswith(".tmp")] if run.checkpoints.exists() else []
    return sorted(found, key=lambda p: (int(p.name.split(".")[0][5:]), p.stat().st_mtime_ns), reverse=True)


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """64 hex digits over name, dtype, shape and contiguous little-endian bytes of each tensor, names sorted, prefixes stripped."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name.removeprefix('module.')} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
