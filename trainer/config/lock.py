"""Locks as exclusively created files: who holds it (host, boot, pid, start time) and until when. Standard library only.

Not flock, which NFS and Lustre may lack. A holder on this machine is alive or dead by its process; one elsewhere by its lease.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from trainer.config.layout import read_json, write_json

LEASE_S = 120.0
RENEW_S = 20.0


def boot_id() -> str:
    """Differs after a restart of the machine, and between machines."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: tells a pid from its reuse. None: no such process, or a zombie.

    On a system without /proc: 0 for a process that exists.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return 0
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def me() -> dict[str, Any]:
    """This process, as a lock records it."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": boot_id(), "pid": pid, "start": start_ticks(pid), "pidns": _pid_namespace()}


def _pid_namespace() -> str:
    """Two containers on one machine may have equal pids: a pid means something in its own namespace only."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def local_pid(holder: dict[str, Any]) -> int | None:
    """The holder's pid if it is a living process of this machine, else None."""
    here = me()
    if any(holder.get(k) != here[k] for k in ("boot", "pidns")) or not isinstance(holder.get("pid"), int):
        return None
    ticks = start_ticks(holder["pid"])
    return holder["pid"] if ticks is not None and ticks == holder.get("start") else None


class Lock:
    """One file. `acquire` returns False where somebody alive holds it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.renewed = 0.0
        self.links: list[Path] = []

    def holder(self) -> dict[str, Any] | None:
        """Who holds it now, or None: free, or held by a process that is dead or whose lease ran out."""
        found = read_json(self.path)
        if not isinstance(found, dict):
            return None
        here = me()
        if found.get("boot") == here["boot"] and found.get("pidns") == here["pidns"]:
            return found if local_pid(found) is not None else None
        try:
            age = time.time() - self.path.stat().st_mtime
        except OSError:
            return None
        return found if age < LEASE_S else None

    def acquire(self, **details: Any) -> bool:
        """Takes the lock; details are kept in it. Whole from the first moment: written aside, then linked."""
        mine = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        write_json(mine, {**me(), **details}, sync=False)  # no lock outlives a power cut
        try:
            taken = self._take(mine)
            self.renewed = time.monotonic()
            return taken
        finally:
            mine.unlink(missing_ok=True)

    def acquire_also(self, other: Lock) -> bool:
        """Takes `other` as a second name of this lock's file: what renews this one renews it, and both are freed together.

        For who holds a thousand locks. Returns False where somebody alive holds it.
        """
        if not other._take(self.path):
            return False
        self.links.append(other.path)
        return True

    def _take(self, mine: Path) -> bool:
        while True:
            try:
                os.link(mine, self.path)
                return True
            except FileExistsError:
                if self.holder() is not None:
                    return False
                self._remove_dead()

    def _remove_dead(self) -> None:
        """Takes a dead holder's file away by a rename, which one process alone wins; a live one's goes back."""
        before = read_json(self.path)
        aside = self.path.with_name(f".{self.path.name}.dead.{os.getpid()}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if read_json(aside) != before:  # somebody else removed the dead one and took the lock in between
            with contextlib.suppress(FileExistsError):
                os.link(aside, self.path)
        aside.unlink(missing_ok=True)

    def renew(self) -> None:
        """Renews the lease; to be called often, does something every RENEW_S seconds."""
        if time.monotonic() - self.renewed > RENEW_S:
            self.renewed = time.monotonic()
            os.utime(self.path)

    def release(self) -> None:
        """Frees the lock if this process holds it."""
        found = read_json(self.path)
        if found and {k: found.get(k) for k in ("boot", "pid", "start", "pidns")} == {
            k: v for k, v in me().items() if k != "host"
        }:
            for path in (*self.links, self.path):
                path.unlink(missing_ok=True)
