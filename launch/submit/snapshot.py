"""Freezes the code that a run runs: what git tracks and the untracked files that it does not
ignore, or the installed packages.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.submit import project_files, secret_files
from launch.submit.project_files import SnapshotError
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import PACKAGES, RunDir

MOST_MB = 200
SHOWN = 8  # names in a note
# Python's folder for bytecode. An empty file of that name stands in each folder of the frozen
# packages: Python then writes none, so that nothing runs there but what is listed.
# PYTHONDONTWRITEBYTECODE would stop that of torch as well, which not every installer compiles.
BYTECODE = "__pycache__"
# in the place of a sha256: what this user cannot read they cannot run either
UNREADABLE = "cannot be read"
LIKE_A_SECRET = "looks like a secret"
RECORDED = ("torch", "torchvision", "numpy", "wandb", "submitit", "pydantic")  # versions


@dataclass(frozen=True)
class Code:
    """The code of a project as it is now. sha256: over the paths and contents of all files.

    contents: each file's own sha256. left_out: what is in the project and not among the files, and
    why. notes: what a user who freezes it should know.
    """

    root: Path
    files: list[Path]  # relative
    sha256: str
    commit: str | None
    dirty: bool | None  # None: without git nobody knows
    contents: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def look(project: Path) -> Code:
    """Reads the project's code, without untracked files that look like secrets.

    Raises SnapshotError where it is too much to be code, or cannot be read.
    """
    listing = project_files.find(project)
    by_name = {name for name in listing.files if secret_files.has_secret_name(name)}
    ours = {name for name in listing.files if name.split("/")[0] == PACKAGES}
    candidates = listing.files - (by_name - listing.tracked) - ours
    _refuse_large(project, candidates)

    contents, secret = dict[str, str](), set(by_name)
    for name in candidates:
        content = _read(project / name)
        contents[name] = hashlib.sha256(content).hexdigest()
        if secret_files.holds_key(content):
            secret.add(name)
    untracked_secrets = secret - listing.tracked
    for name in untracked_secrets:
        contents.pop(name, None)

    left_out = {
        **listing.left_out,
        **dict.fromkeys(sorted(ours), f"{PACKAGES} is what the frozen code has on the path"),
        **dict.fromkeys(sorted(untracked_secrets), LIKE_A_SECRET),
    }
    notes = _notes(listing.note, left_out, secret & listing.tracked)
    files = sorted(Path(name) for name in contents)
    ordered = {str(file): contents[str(file)] for file in files}
    return Code(
        project, files, digest(ordered), listing.commit, listing.dirty, ordered, left_out, notes
    )


def digest(contents: Mapping[str, str]) -> str:
    """One sha256 over the paths and contents of files, in the order that they are given."""
    whole = hashlib.sha256()
    for name, sha256 in contents.items():
        whole.update(f"{name}\0{sha256}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _refuse_large(project: Path, names: set[str]) -> None:
    sizes = {name: (project / name).stat().st_size for name in names}
    size_mb = sum(sizes.values()) / 2**20
    if size_mb > MOST_MB:
        big = sorted(sizes, key=lambda name: -sizes[name])[:5]
        raise SnapshotError(
            f"the code in {project} takes {size_mb:.0f} MB (at most {MOST_MB}): add what is no code"
            f" to .gitignore; the largest: {', '.join(big)}"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SnapshotError(
            f"{path} belongs to the code and cannot be read ({error.strerror}): make it readable,"
            " or add it to .gitignore"
        ) from None


def _notes(
    of_listing: str | None, left_out: dict[str, str], tracked_secrets: set[str]
) -> tuple[str, ...]:
    """What a user should know of the code that is frozen, a line each."""
    notes = [of_listing] if of_listing else []
    for why in dict.fromkeys(left_out.values()):
        names = [name for name, reason in left_out.items() if reason == why]
        notes.append(f"left out of the frozen code: {_shown(names)} ({why})")
    if tracked_secrets:
        shown = _shown(tracked_secrets)
        notes.append(
            f"tracked, and so copied into the frozen code, although it {LIKE_A_SECRET}: {shown}"
        )
    return tuple(notes)


def _shown(names: Collection[str]) -> str:
    first = sorted(names)[:SHOWN]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(first) + more


def freeze(code: Code, run: RunDir, image: str | None) -> None:
    """Copies the code to `run.code` and records where it came from.

    What was there before is replaced as a whole.
    """
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
        "commit": code.commit,
        "dirty": code.dirty,
        "files": len(code.files),
        "sha256": code.sha256,
        "versions": {"python": sys.version.split()[0], **_versions()},
        "image": image,
        "left_out": code.left_out,
        # a request of an earlier version has none
        **({"contents": code.contents} if code.contents else {}),
    }


def keep(code: Code, folder: Path) -> Code:
    """The same code from a copy in `folder`, which nobody edits while the points of a sweep are
    frozen from it.

    Its notes are the caller's to print: once, not for every point. Raises SnapshotError.
    """
    if folder.exists() and not (folder / PACKAGES).exists():
        # an older version's, in which Python leaves bytecode
        folder = folder.with_name(f"{folder.name}.2")
    if not folder.exists():
        _copy(code, folder)
    return replace(code, root=folder, notes=())


def _copy(code: Code, folder: Path) -> None:
    fresh = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    link_packages(fresh, Path(".."))
    for name, sha256 in code.contents.items():
        source, target = code.root / name, fresh / name
        content = _read(source)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SnapshotError(f"{source} was changed while it was being frozen: submit again")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        # as readable as it is, and no longer to be written
        target.chmod(stat.S_IMODE(source.stat().st_mode) & 0o555)
    for package in project_files.PACKAGES:
        for inside, _, _ in os.walk(fresh / package):
            Path(inside, BYTECODE).touch(0o444)
    _remove(folder)
    fresh.rename(folder)
    _contents.cache_clear()


def link_packages(folder: Path, code: Path) -> None:
    """Makes the folder in `folder` that goes on the path, with links to the two packages of `code`.

    Raises OSError.
    """
    packages = folder / PACKAGES
    packages.mkdir(parents=True, exist_ok=True)
    for name in project_files.PACKAGES:
        if not (packages / name).is_symlink():
            (packages / name).symlink_to(code / name)


def differences(code: Path, record: Mapping[str, Any]) -> list[str]:
    """What is not as it was frozen, a line each. record: the run's code.json.

    Where the record lists no files, as that of older versions, all of them are compared as one;
    without a record nothing can be.
    """
    listed, whole = record.get("contents"), record.get("sha256")
    if not code.is_dir() or (listed is None and whole is None):
        return []
    try:
        found = _contents(code.resolve())
    except OSError as error:
        return [f"{error.filename} cannot be read ({error.strerror})"]
    if not isinstance(listed, dict):
        kept = {name: sha256 for name, sha256 in found.items() if BYTECODE not in name.split("/")}
        return (
            []
            if digest(kept) == whole
            else ["the files together are not those that code.json has the sha256 of"]
        )

    kinds = {
        "not listed in code.json": found.keys() - listed.keys(),
        "changed": {
            name
            for name in found.keys() & listed.keys()
            if found[name] not in (listed[name], UNREADABLE)
        },
        "missing": listed.keys() - found.keys(),
    }
    return [f"{kind}: {_shown(names)}" for kind, names in kinds.items() if names]


@functools.cache
def _contents(root: Path) -> dict[str, str]:
    """Each file's sha256; once for code that many runs share.

    A link, of which no code has any, is its own. Raises OSError.
    """
    found = dict[Path, str]()
    for folder, folders, names in os.walk(root, onerror=_raise):
        inside = Path(folder).relative_to(root)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        for name in (*names, *links):
            path = Path(folder, name)
            if path.is_symlink():
                is_package = inside == Path(PACKAGES) and name in project_files.PACKAGES
                if not (is_package and path.readlink() == Path("..", name)):
                    found[inside / name] = f"a link to {path.readlink()}"
            elif name != BYTECODE or path.stat().st_size:
                found[inside / name] = _sha256(path)
    return {str(name): found[name] for name in sorted(found)}


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except PermissionError:
        return UNREADABLE


def _raise(error: OSError) -> None:
    raise error


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
