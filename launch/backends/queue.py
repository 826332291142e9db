"""Slurm's queue: what it says of a job, and how a job leaves it."""

from __future__ import annotations

import re
from pathlib import Path

from launch import slurm_commands as commands
from launch.slurm_commands import SlurmError

FIRST_ARRAY_LIMIT = 1001  # Slurm's own default of MaxArraySize


def largest_array() -> int:
    """How many tasks an array of this cluster may have: MaxArraySize caps the index.

    Raises SlurmError.
    """
    found = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", commands.run("scontrol", "show", "config").stdout, re.M
    )
    return max(1, int(found[1]) if found else FIRST_ARRAY_LIMIT)


def states(job_ids: list[str]) -> dict[str, str]:
    """Slurm's state of each job that is in its queue, from squeue: RUNNING, or, with the reason,
    PENDING (Priority).

    Raises SlurmError where squeue does not answer, and OtherCluster.
    """
    if not job_ids:
        return {}
    commands.refuse_other_cluster()
    found = {}
    for line in commands.ask("squeue", "-h", "-r", "-o", "%i|%T|%r").splitlines():
        job, state, reason = (line + "||").split("|")[:3]
        found[job] = (
            f"{state} ({reason})" if state == "PENDING" and reason not in ("", "None") else state
        )
    return {job: found[job] for job in job_ids if job in found}


def fate(job_id: str) -> str | None:
    """How a job that has left the queue ended, in Slurm's words: FAILED (BadConstraints); None
    where Slurm no longer tells.

    Slurm itself forgets a job after minutes (MinJobAge); its accounting does not, where a cluster
    has one.
    """
    shown = commands.look("scontrol", "show", "job", "-o", job_id)
    found = re.search(r"\bJobState=(\S+) Reason=(\S+)", shown)
    if not found:
        shown = commands.look("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "state,reason")
        found = re.match(r"([A-Z_]+)[^|]*\|(\S*)", shown)
    if not found:
        return None
    state, reason = found.groups()
    return state if reason in ("", "None") else f"{state} ({reason})"


def log_of(job_id: str, folder: Path) -> Path:
    """What the job's script printed, and Slurm of it, by submitit's naming. folder: the `logs` of
    its record.
    """
    return folder / f"{job_id}_0_log.out"


def queue_entry(job_id: str) -> tuple[str, str, str, str]:
    """A waiting job: (state, reason, when it may start, when it was submitted), in Slurm's words;
    "gone" where Slurm knows it no longer. Raises SlurmError.
    """
    done = commands.run("squeue", "-h", "-r", "-j", job_id, "-o", "%T|%r|%S|%V")
    if done.returncode and "Invalid job id" not in done.stderr:
        raise SlurmError(f"squeue failed ({done.returncode}): {done.stderr.strip()}")
    lines = done.stdout.splitlines() or ["gone"]
    state, reason, start, since = (lines[0] + "|||").split("|")[:4]
    return state, reason, start, since


def cancel(job_id: str, state: str, *, now: bool = False) -> None:
    """Stops the job after a checkpoint where it runs (launch.node gets USR2, finds cancel.json and
    does not requeue); else at once.

    Raises SlurmError.
    """
    gently = state == "RUNNING" and not now
    commands.ask("scancel", *(["--signal=USR2"] if gently else []), job_id, order=True)
