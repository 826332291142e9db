"""Whether this user may run the code of a run and the Python that its plan names: whose they are,
and what was frozen.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Wrong
from launch.submit import project_files, snapshot
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import PACKAGES, RunDir

SHOWN = 5  # names in a line of a message


class DistrustError(Wrong):
    """The code is not run; the message says whose it is, or what was changed, and what to try."""


@dataclass(frozen=True)
class Trusted:
    """Whom and what the site trusts. unknown: names that are neither a user's nor a
    group's here.
    """

    users: frozenset[int]
    groups: frozenset[int]
    folders: tuple[Path, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class FrozenCode:
    """A folder of frozen code below the folder `runs`.

    name: of the run or sweep that it belongs to. record: what was frozen, as read from its
    code.json, which may be missing or corrupt.
    """

    name: str
    folder: Path
    record: Any
    runs: Path


def check(run: RunDir, trusted: Sequence[str], *, once: bool = False) -> None:
    """Raises DistrustError where the code of a run, or what its plan starts, may be somebody
    else's.

    trusted: users, groups and folders, as the site file lists them. once: the user vouches for the
    owners and modes; changed code is refused all the same.
    """
    files = [
        path for path in (run.path, run.config, run.plan, run.code_record, run.job) if path.exists()
    ]
    code = FrozenCode(run.run_id, run.code, read_json(run.code_record), run.path.parent)
    _check(code, files, trusted, once=once)


def check_code(code: FrozenCode, trusted: Sequence[str], *, once: bool) -> None:
    """Likewise of frozen code that is no run's own."""
    _check(code, [], trusted, once=once)


def _check(code: FrozenCode, files: list[Path], trusted: Sequence[str], *, once: bool) -> None:
    known = read_trusted(tuple(trusted))
    if not once:
        of_code = _reasons_of_code(code.folder.resolve(), code.runs.resolve(), known)
        reasons = _merged(_reasons(files, known), of_code)
        if reasons:
            raise DistrustError(_not_mine(code.name, reasons, known))
    record = code.record if isinstance(code.record, dict) else {}
    differences = snapshot.differences(code.folder, record)
    if differences:
        head = f"the code of {code.name} ({code.folder}) is not what was frozen:"
        raise DistrustError(
            "\n  ".join([head, *differences])
            + "\nremove what is not listed and restore what was changed; `batchyard submit JOB"
            " --new` trains with the code of now"
        )


@functools.cache
def read_trusted(names: tuple[str, ...]) -> Trusted:
    """What the names of the site file stand for on this machine."""
    users, groups, folders, unknown = set[int](), set[int](), list[Path](), list[str]()
    for name in names:
        if name.startswith(("/", "~")):
            folders.append(Path(name).expanduser().resolve())
            continue
        uid, gid = _user(name), _group(name)
        if uid is None and gid is None:
            unknown.append(name)
        users |= {uid} if uid is not None else set()
        groups |= {gid} if gid is not None else set()
    return Trusted(frozenset(users), frozenset(groups), tuple(folders), tuple(unknown))


def _user(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _group(name: str) -> int | None:
    if name.isdecimal():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


Reasons = dict[str, list[Path]]  # why a path is not trusted, and which


def _merged(*several: Reasons) -> Reasons:
    found: Reasons = {}
    for reasons in several:
        for why, paths in reasons.items():
            found[why] = list(dict.fromkeys([*found.get(why, []), *paths]))
    return found


@functools.cache
def _reasons_of_code(root: Path, runs: Path, trusted: Trusted) -> Reasons:
    """Once for a folder that the points of a sweep share, and for the folders above it that others
    could exchange.
    """
    above = [folder for folder in root.parents if runs in folder.parents]
    return _reasons([*above, *_what_runs(root)], trusted)


def _what_runs(root: Path) -> Iterator[Path]:
    yield root
    if (root / PACKAGES).exists():
        yield root / PACKAGES
    for package in project_files.PACKAGES:
        for folder, _, names in os.walk(root / package):
            yield Path(folder)
            yield from (Path(folder, name) for name in names)


def _reasons(paths: Sequence[Path], trusted: Trusted) -> Reasons:
    found: Reasons = {}
    for path in paths:
        if not any(path.resolve().is_relative_to(folder) for folder in trusted.folders):
            for why in _reasons_of(path.lstat(), trusted):
                found.setdefault(why, []).append(path)
    return found


def _reasons_of(status: os.stat_result, trusted: Trusted) -> Iterator[str]:
    if not _is_trusted_owner(status.st_uid, trusted):
        yield f"belongs to {_user_name(status.st_uid)}"
    if stat.S_ISLNK(status.st_mode):
        return
    if status.st_mode & stat.S_IWOTH:
        yield "can be written by everybody"
    elif (
        status.st_mode & stat.S_IWGRP
        and status.st_gid not in trusted.groups
        and not _is_private(status)
    ):
        yield f"can be written by the group {_group_name(status.st_gid)}"


@functools.cache
def _is_trusted_owner(uid: int, trusted: Trusted) -> bool:
    if uid == os.geteuid() or uid in trusted.users:
        return True
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return False
    return bool(trusted.groups & set(os.getgrouplist(user.pw_name, user.pw_gid)))


def _is_private(status: os.stat_result) -> bool:
    """Whether the group is its owner alone, as many systems give each user a group of the same
    name.
    """
    try:
        user, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    is_own = user.pw_gid == status.st_gid and group.gr_name == user.pw_name
    return is_own and set(group.gr_mem) <= {user.pw_name}


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"the user {uid}"


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _not_mine(name: str, reasons: Reasons, trusted: Trusted) -> str:
    lines = [f"the code of {name} is not run, for it would run as {_user_name(os.geteuid())}:"]
    for why, paths in reasons.items():
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        lines.append(f"  {paths[0]} {why}{more}")
    if trusted.unknown:
        lines.append(
            f"  `trusted` in the site file names {', '.join(trusted.unknown)}: neither a user nor a"
            " group here"
        )
    lines.append(
        "where that is right, name the user, the group or the folder in `trusted` of the site file;"
        " --trust allows it once"
    )
    return "\n".join(lines)
