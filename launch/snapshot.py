"""Freezes the code that a run runs: what git tracks and the untracked files that it does not ignore, or the installed packages."""

from __future__ import annotations

import functools
import hashlib
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch.errors import Wrong
from trainer.config.layout import PACKAGES, RunDir, write_json

MOST_MB = 200
ON_PATH = ("trainer", "launch")
RECORDED = ("torch", "torchvision", "numpy", "wandb", "submitit", "pydantic")


class SnapshotError(Wrong):
    """The code cannot be frozen; the message says what to do."""


@dataclass(frozen=True)
class Code:
    """The code of a project as it is now. sha256: over the paths and contents of all files."""

    root: Path
    files: list[Path]  # relative
    sha256: str
    commit: str | None
    dirty: bool


def look(project: Path) -> Code:
    """Reads the project's code. Raises SnapshotError where it is too much to be code."""
    listing = _git(project, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    if listing is not None and "trainer/__init__.py" in listing.split("\0"):
        files = [Path(name) for name in listing.split("\0") if name and (project / name).is_file()]
        commit = (_git(project, "rev-parse", "HEAD") or "").strip() or None
        dirty = bool((_git(project, "status", "--porcelain") or "").strip())
    else:
        files = [p.relative_to(project) for top in ("trainer", "launch") for p in (project / top).rglob("*.py")]
        commit, dirty = None, False
    size_mb = sum((project / f).stat().st_size for f in files) / 2**20
    if size_mb > MOST_MB:
        big = sorted(files, key=lambda f: -(project / f).stat().st_size)[:5]
        raise SnapshotError(
            f"the code in {project} takes {size_mb:.0f} MB (at most {MOST_MB}): add what is no code to .gitignore; "
            f"the largest: {', '.join(map(str, big))}"
        )
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file}\0{hashlib.sha256((project / file).read_bytes()).hexdigest()}\n".encode())
    return Code(project, sorted(files), digest.hexdigest(), commit, dirty)


def freeze(code: Code, run: RunDir, image: str | None) -> None:
    """Copies the code to `run.code` and records where it came from. What was there before is replaced as a whole."""
    _copy(code, run.code)
    write_json(run.code_record, record(code, image))


def freeze_shared(code: Code, run: RunDir) -> None:
    """Links the run to `code.root`, which `keep` made for all points of a sweep."""
    try:
        run.code.symlink_to(code.root)
    except FileExistsError:
        _remove(run.code)
        run.code.symlink_to(code.root)
    write_json(run.code_record, record(code), sync=False)


def record(code: Code, image: str | None = None) -> dict[str, Any]:
    """Where the code came from, for code.json."""
    return {
        "commit": code.commit, "dirty": code.dirty, "files": len(code.files), "sha256": code.sha256,
        "versions": {"python": sys.version.split()[0], **_versions()}, "image": image,
    }  # fmt: skip


def keep(code: Code, folder: Path) -> Code:
    """The same code from a copy in `folder`, which nobody edits while the points of a sweep are frozen from it."""
    if folder.exists():
        link_packages(folder, Path(".."))  # an older version may have copied it
    else:
        _copy(code, folder)
    return replace(code, root=folder)


def _copy(code: Code, folder: Path) -> None:
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    link_packages(fresh, Path(".."))
    for file in code.files:
        target = fresh / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(code.root / file, target)
        target.chmod(0o555 if (code.root / file).stat().st_mode & stat.S_IXUSR else 0o444)
    _remove(folder)
    fresh.rename(folder)


def link_packages(folder: Path, code: Path) -> None:
    """Makes the folder in `folder` that goes on the path, with links to the two packages of `code`.

    Raises OSError.
    """
    packages = folder / PACKAGES
    packages.mkdir(parents=True, exist_ok=True)
    for name in ON_PATH:
        if not (packages / name).is_symlink():
            (packages / name).symlink_to(code / name)


def on_path(code: Path) -> Path:
    """What goes on PYTHONPATH so that `code` runs.

    That is its folder of packages; of code that older versions have frozen, which has none, itself.
    """
    packages = code / PACKAGES
    return code if code.exists() and not packages.exists() else packages


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _versions() -> dict[str, str]:
    from importlib import metadata  # takes longer than all the rest of this module

    found = {}
    for package in RECORDED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(project: Path, *arguments: str) -> str | None:
    """git's output, or None where the project is no checkout of its own or there is no git."""
    try:
        result = subprocess.run(["git", "-C", str(project), *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return result.stdout if result.returncode == 0 else None
