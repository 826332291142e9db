"""Where this node stands in its job: its rank, the first node and its port, the deadline."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
from pathlib import Path

from launch.node.requeue import ask, unix_s
from launch.node.signals import Node


def deadline_s() -> float | None:
    """Unix seconds at which the job's time limit ends it; None where there is no Slurm or no limit.

    Asked on the host, once.
    """
    env = os.environ
    if "SLURM_JOB_END_TIME" in env:  # Slurm 22.05 does not set it
        return float(env["SLURM_JOB_END_TIME"])
    if "SLURM_JOB_ID" not in env:
        return None
    answer = ask("squeue", "-h", "-j", env["SLURM_JOB_ID"], "-o", "EndTime=%e")
    return unix_s(answer, "EndTime") or None


def place(*, of_array: bool = False) -> Node:
    """This node from Slurm's variables: no scontrol, which an image may lack, and never localhost
    for a second node.

    of_array: the job is a task of an array. Slurm sets the variables of arrays for tasks alone, and
    counts restarts from the first one on: another job has those of the task that it was submitted
    from, if it was submitted with its whole environment.
    """
    env = os.environ
    job = (
        f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
        if of_array
        else env["SLURM_JOB_ID"]
    )
    restart = int(env.get("SLURM_RESTART_COUNT") or 0)
    if restart:
        counted = ask("squeue", "-h", "-j", env["SLURM_JOB_ID"], "-O", "RestartCnt").strip()
        restart = int(counted) if counted.isdecimal() else restart
    hosts = expand_hosts(env.get("SLURM_JOB_NODELIST", "localhost"))
    return Node(int(env.get("SLURM_NODEID", 0)), f"slurm-{job}.{restart}", hosts[0], 0, job)


def expand_hosts(nodelist: str) -> list[str]:
    """`n[1-3,07],login` -> n1, n2, n3, n07, login; leading zeros stay."""
    hosts = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", nodelist):
        names = [""]
        for text, ranges in re.findall(r"([^\[]+)|\[([^\]]*)\]", part):
            options = [text] if text else []
            for item in ranges.split(",") if ranges else []:
                first, _, last = item.partition("-")
                options += [
                    str(i).zfill(len(first)) for i in range(int(first), int(last or first) + 1)
                ]
            names = [name + option for name in names for option in options]
        hosts += names
    return hosts


def free_port(seed: str) -> int:
    """A port that nothing listens on here: outside the range that the kernel hands out, and not
    torch's default 29500. Another seed begins to look elsewhere, so that two jobs that start on a
    node together seldom take the same.
    """
    ports = list(range(15000, 25000))
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
        ports = [p for p in range(15000, 65000) if not low <= p <= high and p != 29500] or ports
    first = int(hashlib.sha256(seed.encode()).hexdigest(), 16) % len(ports)
    return next((p for p in (*ports[first:], *ports[:first]) if is_free(p)), ports[first])


def is_free(port: int) -> bool:
    """Whether a server could listen there now, on all of this machine's addresses."""
    with socket.socket() as probe:
        # as torch's: one that was closed a moment ago is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen()
        except OSError:
            return False
    return True
