"""Locks as files: who holds one (host, boot, pid, start) and until when. Standard library only.

Not flock, which NFS and Lustre may lack. A holder on this machine is alive or dead by its process.
One elsewhere is alive while its lease lasts. It renews its file's time, and the judge compares
that with the time of a file that it has just written itself, so that no machine's clock matters
(trainer.config.files.file_clock).

**Taking.** Every content has a nonce, which never comes again. The content is written aside, under
a name with host and nonce, and linked to the lock's name. link() makes the name or fails, so one
of many wins. What then counts is the content found at the name: NFS may lose the answer of a
link() that was made, and answer "exists" at the second try.

**Taking over.** A dead content is removed only by the process that holds its take-over: a file
named by that content's nonce, which is taken as a lock is. With the take-over in hand the process
looks again, and moves the content away only where it is still the same, and still dead. A process
that judged it dead long ago finds another content and leaves it alone, for the nonce cannot come
again. Who dies in between leaves a dead take-over. It is taken over by the same rule, under its
own nonce.

**What a lease cannot exclude.** A process that is frozen beyond its lease, between its last look
and its next call, acts on what was true before. It compares what it has moved away, and puts
another's content back. A holder learns from `renew` that it lost the lock, and then must write no
more.

**Beside code from before there were nonces.** Such a process judges a content dead, and a moment
later moves away whatever is there by then. So whoever gets a lock while there is a take-over of it
waits (settle_s), and looks again before it believes.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.files.file_clock import Clock, FileClock, MachineClock, uptime_s
from trainer.config.files.json_files import open_file

LEASE_S = 120.0
RENEW_S = LEASE_S / 6
SETTLE_S = 0.25


class LockLost(Exception):
    """Another process has taken the lock: who held it must write no more. The message names it."""


def boot_id() -> str:
    """Differs after a restart of the machine, and between machines."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: tells a pid from its reuse.

    None: no such process, or a zombie. On a system without /proc: 0 for a process that exists.
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
    return {
        "host": socket.gethostname(),
        "boot": boot_id(),
        "pid": pid,
        "start": start_ticks(pid),
        "pidns": _pid_namespace(),
    }


def _pid_namespace() -> str:
    """Two containers on one machine may have equal pids: a pid means something in its own."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_of_this_machine(holder: dict[str, Any]) -> bool:
    """Whether the holder's pid means something here."""
    return holder.get("boot") == boot_id() and holder.get("pidns") == _pid_namespace()


def local_pid(holder: dict[str, Any]) -> int | None:
    """The holder's pid if it is a living process of this machine, else None."""
    if not is_of_this_machine(holder) or not isinstance(holder.get("pid"), int):
        return None
    ticks = start_ticks(holder["pid"])
    return holder["pid"] if ticks is not None and ticks == holder.get("start") else None


@dataclass(frozen=True)
class Record:
    """What was found at a lock's name. renewed: when, by the file system's clock."""

    content: bytes
    renewed: float

    @property
    def holder(self) -> dict[str, Any]:
        """Who wrote it; empty where it is not readable, as after a power cut."""
        try:
            found = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def key(self) -> str:
        """Tells this content from any other: its nonce; a digest where older code wrote it."""
        nonce = self.holder.get("nonce")
        if isinstance(nonce, str) and nonce.isalnum():
            return nonce[:32]
        return hashlib.sha256(self.content).hexdigest()[:16]

    def is_alive(self, clock: Clock, lease_s: float = LEASE_S) -> bool:
        """Whether its process exists; of another machine, whether its lease lasts by that clock."""
        holder = self.holder
        if not holder:
            return False
        if is_of_this_machine(holder):
            return local_pid(holder) is not None
        return clock.now() - self.renewed < lease_s


def read_record(path: Path) -> Record | None:
    """What is at a lock's name, None where nothing is. Raises OSError where it cannot be read.

    Content and time are those of one file: on NFS it is the opening that asks the server again.
    """
    try:
        with open_file(path) as file:
            return Record(file.read(), os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return None
    except OSError as error:
        # removed on the server between the look-up and the reading
        if error.errno == errno.ESTALE:
            return None
        raise


class Lock:
    """One file. `acquire` returns False where somebody alive holds it.

    lease_s: how long a holder on another machine is believed without a renewal. settle_s: how long
    a process that has taken over waits before it looks again.
    """

    def __init__(self, path: Path, lease_s: float = LEASE_S, settle_s: float = SETTLE_S) -> None:
        self.path = path
        self.lease_s = lease_s
        self.settle_s = settle_s
        self.nonce = ""
        self.content = b""  # of this process, while it holds the lock
        self.links: list[Lock] = []
        self.renewed = 0.0
        self.checked = 0.0

    def holder(self, clock: Clock | None = None) -> dict[str, Any] | None:
        """Who holds it now; None where it is free, or its holder is dead or its lease over.

        clock: by which another machine's lease is judged; this machine's, where none is given.
        """
        try:
            found = read_record(self.path)
        except OSError:
            return None
        if found is None or not found.is_alive(clock or MachineClock(), self.lease_s):
            return None
        return found.holder

    def owner(self) -> str:
        """Who is written in it, dead or alive, for messages."""
        try:
            found = read_record(self.path)
        except OSError as error:
            return f"somebody whose lock cannot be read ({error.strerror})"
        return _named(found.holder) if found else "nobody any more"

    def acquire(self, **details: Any) -> bool:
        """Takes the lock; details are kept in it.

        Raises OSError where the folder cannot be written, or what is there cannot be read.
        """
        nonce = os.urandom(8).hex()
        here = me()
        host = here["host"].replace("/", "_")
        mine = self._beside(f"mine.{host}.{nonce}")
        content = (json.dumps({**here, "nonce": nonce, **details}, indent=2) + "\n").encode()

        began = uptime_s()
        # the first submit of a sweep makes it
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            mine.write_bytes(content)  # not synced: no lock outlives a power cut
            if not self._claim(self.path, mine, content):
                return False
        finally:
            mine.unlink(missing_ok=True)

        self.nonce = nonce
        self.content = content
        self.renewed = began
        self.checked = began
        return True

    def acquire_also(self, other: Lock) -> bool:
        """Takes `other` as a second name of this lock's file: both are renewed and freed together.

        For a process that holds a thousand locks. Returns False where somebody alive holds it.
        Raises LockLost.
        """
        self.verify()
        if not other._claim(other.path, self.path, self.content):
            return False
        self.links.append(other)
        return True

    def renew(self) -> None:
        """Renews the lease and makes sure of the lock. To be called often, acts some times a lease.

        Raises LockLost, and OSError where the disk does not answer: nothing is known then, and a
        later call tries again.
        """
        now = uptime_s()
        if now - self.checked < self.lease_s / 24:
            return
        self.checked = now
        slept = self._may_be_judged_dead(now)
        is_due = now - self.renewed > self.lease_s / 6
        if is_due:
            with contextlib.suppress(FileNotFoundError):
                os.utime(self.path)
        if slept:  # who judged the lock dead before that moves it away now
            time.sleep(self.settle_s)
            for link in self.links:
                link._verify(self.content)
        self.verify()
        if is_due:
            self.renewed = now

    def verify(self) -> None:
        """Raises LockLost where another process has taken the lock, OSError as `renew` does."""
        self._verify(self.content)

    def release(self) -> None:
        """Frees the lock, and what was taken along with it, if this process holds it."""
        if not self.content:
            return
        mine = read_record(self.path)
        is_mine = mine is not None and mine.content == self.content
        is_sure = is_mine and not self._may_be_judged_dead(uptime_s())
        for lock in (*self.links, self):
            if is_sure:
                lock.path.unlink(missing_ok=True)
            else:
                lock._remove(lock.path, self.content)
        self.links = []
        self.content = b""

    def _may_be_judged_dead(self, now: float) -> bool:
        """Whether others may find the lease over, with some room for the time of a request."""
        return now - self.renewed > self.lease_s * 2 / 3

    def _verify(self, content: bytes) -> None:
        found = read_record(self.path)
        for pause_s in (0.05, 0.2, 0.5):  # another process may be putting back what it moved away
            if found is not None:
                break
            time.sleep(pause_s)
            found = read_record(self.path)
        if found is None:
            raise LockLost(
                f"{self.path} is gone, and with it this process's lock: another process may have "
                "taken and freed it"
            )
        if found.content != content:
            raise LockLost(
                f"{self.path} is now held by {_named(found.holder)}: this process did not renew its"
                f" lock for {self.lease_s:.0f} s, and lost it"
            )

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{name}")

    def _claim(self, path: Path, mine: Path, content: bytes) -> bool:
        """Puts the file `mine` at `path`, and takes away what is dead there.

        path: the lock's name, or that of a take-over. mine: has `content`, and was written or
        renewed just now. Returns False where somebody alive is there, or takes over what is there.
        """
        clock = FileClock(mine)
        while True:
            if _link(mine, path, content):
                if path != self.path or self._is_settled(content, clock):
                    return True
                continue
            found = read_record(path)
            if found is None:  # freed just now
                continue
            if found.is_alive(clock, self.lease_s):
                return False

            take_over = self._beside(f"take.{found.key}")
            if not self._claim(take_over, mine, content):
                return False
            try:
                again = read_record(path)
                is_same = again is not None and again.content == found.content
                if again is not None and is_same and not again.is_alive(clock, self.lease_s):
                    self._remove(path, found.content)
                    _link(mine, path, content)
                    time.sleep(self.settle_s)
            finally:
                self._remove(take_over, content)

    def _is_settled(self, content: bytes, clock: Clock) -> bool:
        """Whether the lock just taken stays: at once, unless there is a take-over of it.

        Also removes what killed processes left beside the lock.
        """
        prefix = self._beside("").name
        left = [name for name in os.listdir(self.path.parent) if name.startswith(prefix)]
        if not any(name.startswith((f"{prefix}take.", f"{prefix}gone.")) for name in left):
            return True
        time.sleep(self.settle_s)
        found = read_record(self.path)
        if found is None or found.content != content:
            return False
        for name in left:
            self._tidy(self.path.with_name(name), clock)
        return True

    def _tidy(self, left: Path, clock: Clock) -> None:
        """Removes what a dead process left beside the lock, which this process holds."""
        kind = left.name.removeprefix(self._beside("").name).partition(".")[0]
        found = read_record(left)
        if found is None or found.is_alive(clock, self.lease_s):
            return
        if kind in ("take", "gone") or (kind == "mine" and is_of_this_machine(found.holder)):
            left.unlink(missing_ok=True)

    def _remove(self, path: Path, content: bytes) -> None:
        """Removes the file at `path` if it has that content.

        Another's, moved away because it came there in between, is put back at once.
        """
        gone = self._beside(f"gone.{os.urandom(8).hex()}")
        found = read_record(path)
        if found is None or found.content != content:
            return
        with contextlib.suppress(FileNotFoundError):  # NFS may lose the answer of a rename, too
            path.rename(gone)
        moved = read_record(gone)
        if moved is None:
            return
        if moved.content == content:
            gone.unlink(missing_ok=True)
        else:
            gone.replace(path)


def _named(holder: dict[str, Any]) -> str:
    attempt = f" ({holder['attempt']})" if "attempt" in holder else ""
    return f"pid {holder.get('pid')} on {holder.get('host')}{attempt}"


def _link(mine: Path, path: Path, content: bytes) -> bool:
    """Links `mine` to a free name. Returns whether it is there, whatever link() answered."""
    with contextlib.suppress(FileExistsError):
        os.link(mine, path)
    found = read_record(path)
    return found is not None and found.content == content
