"""The plan's command is started, watched and ended on this node."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from launch.node import scratch
from launch.node.requeue import ask, keep
from launch.node.signals import DIE_WITH_PARENT, POLL_S, Node, Signals
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.lock import Lock, LockLost


def execute(
    plan: dict[str, Any], run: RunDir, node: Node, signals: Signals, lock: Lock | None
) -> int:
    """Runs the plan's command to its end and records how it ended here; returns its exit status,
    negative for a signal (as subprocess does).
    """
    attempt = run.attempt(node.attempt_id)
    environment = {**os.environ, **plan["env"], "BATCHYARD_ATTEMPT": node.attempt_id}
    # rank 0 decides for all
    if deadline := node.rank == 0 and read_json(attempt.record)["deadline"]:
        environment["BATCHYARD_DEADLINE"] = str(deadline)
    if plan.get("local_scratch") and (own := on_local_scratch(run, plan["local_scratch"], lock)):
        environment["BATCHYARD_PREPARED"] = str(own)
    argv = [
        sys.executable,
        "-S",
        "-P",
        "-c",
        DIE_WITH_PARENT,
        *(node.fill(a) for a in plan["argv"]),
    ]
    contained = plan["backend"] == "docker"
    killed_before = oom_kills(contained=contained)
    with attempt.node_log(node.rank).open("ab") as out:
        process = subprocess.Popen(
            argv,
            env=environment,
            cwd=run.path,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C at the terminal reaches the launcher alone
        )
    signals.process = process
    signals.forward()  # one that came before there was a process
    assert process.stdin is not None
    # open while this process lives: the container's entrypoint stops when its stdin ends
    with process.stdin:
        while process.poll() is None:
            if lock is not None:
                try:
                    # a disk that fails for a moment ends no training
                    with contextlib.suppress(OSError):
                        lock.renew()
                except LockLost:
                    end_at_once(plan, run, process)
                    raise
            time.sleep(POLL_S)
    leave_record(
        attempt, node, signals, process.returncode, oom_kills(contained=contained) - killed_before
    )
    return process.returncode


def end_at_once(plan: dict[str, Any], run: RunDir, process: subprocess.Popen[bytes]) -> None:
    """Ends the command before it writes again: asked by TERM, the trainer would write a checkpoint
    first.
    """
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # the ranks die with it
    if plan["backend"] == "docker":  # killed was the client alone
        ask(plan["argv"][0], "kill", run.run_id)
    process.wait()


def leave_record(
    attempt: Attempt, node: Node, signals: Signals, exit_status: int, killed: int
) -> None:
    """How the command ended on this node. killed: processes of it, by the kernel, for memory."""
    record = {
        "node": node.rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "exit_status": exit_status,
        "signal": signals.received,
        "oom_kills": killed,
    }
    keep(partial(write_json, attempt.node_record(node.rank), record))


def on_local_scratch(run: RunDir, folder: str, held: Lock | None = None) -> Path | None:
    """The prepared data on this node's own disk; None, and said, where it cannot be had there: the
    shared copy serves.
    """
    shared = Path((read_json(run.data_record) or {}).get("path", ""))
    try:
        expanded = os.path.expandvars(folder)
        if not Path(expanded).is_absolute():
            raise scratch.NotCopied(f"{folder} is {expanded} on this node, no absolute path")
        return scratch.copy(shared, Path(expanded), held)
    except scratch.NotCopied as error:
        print(
            f"launch.node: {socket.gethostname()} reads the data from {shared}, not from"
            f" local_scratch: {error}",
            flush=True,
        )
        return None


def oom_kills(*, contained: bool) -> int:
    """How many processes the kernel has killed for memory: of this process's cgroup (2, else 1),
    where the command runs in it and the kernel tells; else of the whole machine.
    """
    groups = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups[controllers] = path.strip("/")
    files = [Path("/proc/vmstat")]
    if not contained:
        files = [
            Path("/sys/fs/cgroup") / groups.get("", "") / "memory.events",
            Path("/sys/fs/cgroup/memory") / groups.get("memory", "") / "memory.oom_control",
            *files,
        ]
    for file in files:
        with contextlib.suppress(OSError):
            if found := re.search(r"^oom_kill (\d+)$", file.read_text(), re.M):
                return int(found[1])
    return 0
