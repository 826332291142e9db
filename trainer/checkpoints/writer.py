"""Writes checkpoints in the background: the step waits for a copy in host memory, a thread does the
rest. Rank 0 alone has one.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trainer.checkpoints import files as checkpoint
from trainer.config.files.layout import Attempt, RunDir
from trainer.ranks import watchdog
from trainer.ranks.environment import say
from trainer.ranks.faults import kill_point

KEEP = 2
RETRY_S = 60.0  # after a failed try the periodic ones rest for so long
SIGN_S = 2.0  # how often a wait looks whether the writing comes forward
# left free, so that metrics, logs and the outcome still find room on a disk that is nearly full
SPARE_BYTES = 2**20


class Writer:
    """Publishes at most one checkpoint at a time; afterwards all but the newest KEEP and the best
    one are gone.

    A disk that does not take a checkpoint (full, read-only, a quota, an I/O error) does not stop
    the training: one line in the log, `problem`, and another try with the next `save`. Whatever
    else goes wrong in the thread is raised by the next call.

    problem: why the newest try failed; None after one that succeeded. last_stall_s: what the newest
    `save` kept the step waiting. last_save_s: from that call to the published checkpoint. Both None
    before the first one.
    """

    def __init__(self, run: RunDir, attempt: Attempt) -> None:
        self.run, self.attempt = run, attempt
        self.problem: str | None = None
        self.last_stall_s: float | None = None
        self.last_save_s: float | None = None
        self._copies = HostCopies()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._failed_at = 0.0
        self._written = 0  # bytes, of all checkpoints
        self._failed_tries = 0

    def save(
        self,
        step: int,
        *,
        weights: dict[str, Tensor],
        trainer: dict[str, Any],
        manifest: dict[str, Any],
        best: bool = False,
        last: bool = False,
    ) -> None:
        """Begins a checkpoint of this step and returns when the state may change again; `wait`
        returns when it is on disk.

        While another one is being written, it waits for that: a second set of buffers would cost
        the memory of the whole state. After a failed try, saves within RETRY_S do nothing, except
        one that is the best so far or the last of this attempt. weights and trainer: tensors,
        numbers, strings, and dicts and lists of them (what `weights_only` loads). manifest: added
        to the written one; its metrics_bytes, the length of metrics.jsonl at this step, is waited
        for on disk. best: `best` will point to it.
        """
        begun = time.monotonic()
        self.wait()
        if self.problem and begun - self._failed_at < RETRY_S and not (best or last):
            return
        content = {
            "weights.pt": self._copies.take(weights, ("weights",)),
            "trainer.pt": self._copies.take(trainer, ("trainer",)),
        }
        facts = {
            "schema": checkpoint.SCHEMA,
            "global_step": step,
            "attempt": self.attempt.id,
            "best": best,
            **manifest,
        }
        # Not a daemon: a rank that fails still finishes the checkpoint that it has begun.
        self._thread = threading.Thread(
            target=self._try, args=(begun, content, facts, self._copies.done()), name="checkpoint"
        )
        self._thread.start()
        self.last_stall_s = time.monotonic() - begun

    def wait(self) -> None:
        """Returns when no checkpoint is being written: on disk and verified, or `problem` says why
        not.
        """
        if self._thread is not None:
            while self._thread.is_alive():
                written = self._written
                self._thread.join(SIGN_S)
                if self._written != written:  # a slow disk is no hang
                    watchdog.alive()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _try(
        self,
        begun: float,
        content: dict[str, Any],
        manifest: dict[str, Any],
        copied: torch.cuda.Event | None,
    ) -> None:
        """The thread: one try, and what is to be known of it."""
        step = manifest["global_step"]
        try:
            if sys.platform == "linux":
                os.nice(10)  # there it is this thread's alone
            if copied is not None:
                copied.synchronize()
            self._publish(content, manifest)
            if self._failed_tries:
                say(
                    f"the checkpoint of step {step} is written, after {self._failed_tries} that"
                    " were not"
                )
            self.problem, self._failed_tries, self.last_save_s = None, 0, time.monotonic() - begun
        # ValueError: read back, it was not what had been written
        except (OSError, ValueError) as error:
            shutil.rmtree(self._folder(step, ".tmp"), ignore_errors=True)
            self._failed_at, self._failed_tries = time.monotonic(), self._failed_tries + 1
            self.problem = (
                f"step {step}:"
                f" {error}{_missing(error, self.run.checkpoints, checkpoint.size_bytes(content))}"
            )
            say(f"CHECKPOINT NOT WRITTEN, training goes on and tries again later: {self.problem}")
        except BaseException as error:
            self._error = error

    def _folder(self, step: int, suffix: str = "") -> Path:
        return self.run.checkpoints / f"step-{step}.{self.attempt.id}{suffix}"

    def _publish(self, content: dict[str, Any], manifest: dict[str, Any]) -> None:
        """Writes, reads back and verifies under another name; one rename makes a checkpoint of it;
        only then older ones go.
        """
        step, parent = manifest["global_step"], self.run.checkpoints
        final, temporary = self._folder(step), self._folder(step, ".tmp")
        if not final.exists():  # else this attempt was here before, with the same state
            if not parent.exists():
                parent.mkdir(parents=True)
                _fsync_directory(parent.parent)
            _check_space(parent, checkpoint.size_bytes(content))
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            files = {
                name: self._write(temporary / name, value, step) for name, value in content.items()
            }
            _sync_metrics(self.run, manifest.get("metrics_bytes", 0))
            manifest = {**manifest, "files": files}
            self._write(
                temporary / "manifest.json",
                {**manifest, "sha256": checkpoint.manifest_sha256(manifest)},
                step,
            )
            _fsync_directory(temporary)
            checkpoint.verify(temporary)
            kill_point(self.run, "rename", step)
            temporary.rename(final)
            _fsync_directory(parent)
        kill_point(self.run, "latest", step)
        try:
            checkpoint.point(parent / "latest", final)
            if manifest["best"]:
                checkpoint.point(parent / "best", final)
            _fsync_directory(parent)
            self._prune(step, final)
        # it is there all the same, and `checkpoint.tidy` puts the links right
        except OSError as error:
            say(
                f"{final.name} is written, but the links to it and the older checkpoints are not in"
                f" order: {error}"
            )

    def _write(self, path: Path, value: Any, step: int) -> dict[str, Any]:
        """Writes one file to the disk itself; returns its size and sha256. Raises OSError."""
        with path.open("wb") as file:
            hashed = HashedFile(file, self._count)
            if path.suffix == ".json":
                hashed.write(json.dumps(value, indent=2).encode())
            else:
                torch.save(value, hashed)
            if hashed.error is not None:
                raise hashed.error
            kill_point(self.run, path.stem, step)  # the file's end is not written yet
            file.flush()
            os.fsync(file.fileno())
            # so that verifying reads the disk and not the memory
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return {"size": hashed.size, "sha256": hashed.sha256.hexdigest()}

    def _count(self, size: int) -> None:
        self._written += size

    def _prune(self, step: int, newest: Path) -> None:
        """Removes all but the newest KEEP, the best one, and the one that was just verified."""
        found = checkpoint.list_newest_first(self.run)
        keep = {
            newest.name,
            (self.run.checkpoints / "best").resolve().name,
            *(path.name for path in found[:KEEP]),
        }
        for old in found:
            if old.name not in keep:
                # a half-removed one is never taken for a spoilt one
                doomed = old.with_name(f"{old.name}.tmp")
                old.rename(doomed)
                kill_point(self.run, "prune", step)
                shutil.rmtree(doomed)


class HostCopies:
    """A buffer in host memory for each tensor of the state, made by the first save and used again:
    later ones allocate nothing.

    From a GPU the copies are only enqueued on its current stream: an update that is enqueued
    afterwards cannot overtake them.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}
        self._on_gpu = False

    @torch.no_grad()
    def take(self, value: Any, place: tuple[Any, ...]) -> Any:
        """A deep copy of dicts and lists with each tensor copied to its buffer, which belongs to
        this place in the state.
        """
        if isinstance(value, dict):
            return {key: self.take(part, (*place, key)) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.take(part, (*place, i)) for i, part in enumerate(value))
        if not isinstance(value, Tensor):
            return value
        buffer = self._buffers.get(place)
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            # pinned, else a copy from a GPU would not be asynchronous
            buffer = self._buffers[place] = torch.empty_like(
                value, device="cpu", pin_memory=value.is_cuda
            )
        self._on_gpu |= value.is_cuda
        return buffer.copy_(value, non_blocking=True)

    def done(self) -> torch.cuda.Event | None:
        """What to wait for before the buffers are read; None where there is nothing to wait for."""
        if not self._on_gpu:
            return None
        event = torch.cuda.Event(blocking=True)  # waits without turning a core
        event.record()
        return event


class HashedFile:
    """A file for torch.save that is hashed as it is written.

    torch.save may hide an error of the disk behind its own (`RuntimeError: unexpected pos`): so it
    is kept, the rest swallowed.
    """

    def __init__(self, file: BinaryIO, count: Callable[[int], None]) -> None:
        """count: is told the bytes of each write."""
        self.file, self.count = file, count
        self.sha256, self.size = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        if self.error is None:
            try:
                self.file.write(data)  # this and the hash let go of Python's lock
                self.sha256.update(data)
                self.size += length
                self.count(length)
            except OSError as error:
                self.error = error
        return length

    def flush(self) -> None:
        """torch.save calls it; the writer flushes by itself."""


def _check_space(folder: Path, need: int) -> None:
    """Raises OSError (ENOSPC) where the disk lacks the room, before it is filled for nothing."""
    free = _free(folder)
    if free is not None and free < need + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _free(folder: Path) -> int | None:
    """Bytes that this user may still write; None where the file system does not say."""
    found = os.statvfs(folder)
    return (
        (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        if found.f_blocks
        else None
    )


def _missing(error: OSError | ValueError, folder: Path, need: int) -> str:
    """How much room is missing, as far as that is known."""
    try:
        free = _free(folder)
        inodes = os.statvfs(folder)
    except OSError:
        return ""
    if (
        not isinstance(error, OSError)
        or error.errno not in (errno.ENOSPC, errno.EDQUOT)
        or free is None
    ):
        return ""
    mb = 1e6
    room = f" ({need / mb:.1f} MB are needed, {free / mb:.1f} MB are free in {folder}"
    if error.errno == errno.EDQUOT:
        return f"{room}; the quota allows less)"
    if free >= need + SPARE_BYTES:
        return f"{room}, {inodes.f_favail} inodes)"
    return f"{room}: {(need + SPARE_BYTES - free) / mb:.1f} MB are missing)"


def _sync_metrics(run: RunDir, length: int) -> None:
    """Brings the rows that belong to the checkpoint to the disk.

    Raises OSError where they are not in the file.
    """
    if length:
        with run.metrics.open("rb") as file:
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        if size < length:
            raise OSError(
                errno.EIO,
                f"{run.metrics.name} has {size} bytes, {length} were logged",
                str(run.metrics),
            )


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
