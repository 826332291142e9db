"""Which files of a project are its code: what git tracks, and what it neither tracks
nor ignores.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from launch import environment
from launch.errors import Wrong

PACKAGES = ("trainer", "launch")  # what runs
MAX_UNTRACKED = 2000  # files; more are data


class SnapshotError(Wrong):
    """The code cannot be frozen; the message says what to do."""


class NoGit(Exception):
    """git lists no files here; the message says why."""


@dataclass
class Listing:
    """Relative paths. left_out: what is no file of the project's own, and why. note: what limits
    the list.
    """

    tracked: set[str] = field(default_factory=set)
    untracked: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    note: str | None = None
    commit: str | None = None
    dirty: bool | None = None

    @property
    def files(self) -> set[str]:
        return self.tracked | self.untracked


def find(project: Path) -> Listing:
    """The files of the project.

    Raises SnapshotError where untracked ones are too many to be code.
    """
    try:
        listing = _by_git(project)
    except NoGit as error:
        return _without_git(project, str(error))
    if "trainer/__init__.py" not in listing.files:
        return _without_git(project, f"git knows no trainer/ in {project}")
    listing.commit = _ask(project, "rev-parse", "HEAD").decode().strip() or None
    listing.dirty = bool(_ask(project, "status", "--porcelain").strip())
    return listing


def _by_git(project: Path) -> Listing:
    """Raises NoGit and SnapshotError."""
    listing = Listing()
    others = _names(_git(project, "ls-files", "-z", "--others", "--exclude-standard"))
    untracked = [name for name in others if not _is_bytecode(name)]
    _refuse_many(project, untracked)

    for name in _names(_git(project, "ls-files", "-z", "--cached")):
        path = project / name
        if _is_bytecode(name):
            continue
        if path.is_file():
            listing.tracked.add(name)
        elif path.is_symlink():
            listing.left_out[name] = "a link that leads to no file"
        elif path.is_dir():
            _add_submodule(listing, path, name)

    for name in untracked:
        path = project / name
        if name.endswith("/"):
            listing.left_out[name] = "a git repository of its own, no submodule"
        elif path.is_file():
            listing.untracked.add(name)
        elif path.is_symlink():
            listing.left_out[name] = "a link that leads to no file"
    return listing


def _add_submodule(listing: Listing, path: Path, name: str) -> None:
    if not (path / ".git").exists():
        listing.left_out[name] = "an empty submodule; git submodule update --init fills it"
        return
    try:
        inner = _by_git(path)
    except NoGit as error:
        listing.left_out[name] = f"a submodule: {error}"
        return
    listing.tracked |= {f"{name}/{file}" for file in inner.tracked}
    listing.untracked |= {f"{name}/{file}" for file in inner.untracked}
    listing.left_out |= {f"{name}/{file}": why for file, why in inner.left_out.items()}


def _without_git(project: Path, why: str) -> Listing:
    """The two packages alone: around them may be the whole site-packages."""
    files = [path for name in PACKAGES for path in (project / name).rglob("*")]
    names = [
        str(path.relative_to(project))
        for path in files
        if not _is_bytecode(str(path.relative_to(project))) and path.is_file()
    ]
    _refuse_many(project, names)
    note = f"{why}: trainer/ and launch/ alone are taken, and no commit is recorded"
    return Listing(untracked=set(names), note=note)


def _refuse_many(project: Path, names: Iterable[str]) -> None:
    """Raises SnapshotError, with the folder that has most of them."""
    parts = [tuple(name.split("/")) for name in names]
    if len(parts) <= MAX_UNTRACKED:
        return
    folder: tuple[str, ...] = ()
    count = len(parts)
    while True:
        depth = len(folder) + 1
        below = Counter(
            part[:depth] for part in parts if part[:-1][: depth - 1] == folder and len(part) > depth
        )
        largest, files = below.most_common(1)[0] if below else (folder, 0)
        if files <= count // 2:
            break
        folder, count = largest, files
    most = f"{count:,} of them in {'/'.join(folder)}/" if folder else "in many folders"
    raise SnapshotError(
        f"{project} has {len(parts):,} files that git does not track (at most {MAX_UNTRACKED:,} are"
        f" taken for code), {most}: add what is no code to .gitignore"
    )


def _is_bytecode(name: str) -> bool:
    """Python makes it from the code, and would run it in the code's place."""
    return name.endswith((".pyc", ".pyo")) or "__pycache__" in name.split("/")


def _names(listing: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]


def _ask(project: Path, *arguments: str) -> bytes:
    """git's answer; nothing where it has none."""
    try:
        return _git(project, *arguments)
    except NoGit:
        return b""


def _git(project: Path, *arguments: str) -> bytes:
    """Raises NoGit."""
    try:
        argv = ["git", "-C", str(project), *arguments]
        result = subprocess.run(
            argv, env=environment.environment(LC_ALL="C"), capture_output=True, check=False
        )
    except FileNotFoundError:
        raise NoGit(f"{project} is read without git, which is not on PATH") from None
    if result.returncode == 0:
        return result.stdout
    said = result.stderr.decode(errors="replace").strip()
    if "not a git repository" in said:
        raise NoGit(f"{project} is no git checkout")
    advice = [line.strip() for line in said.splitlines() if line.strip()]
    raise NoGit(f"git does not read {project} ({' '.join(advice)})")
