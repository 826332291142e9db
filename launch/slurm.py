"""The Slurm backend. The only module that imports submitit, which writes the sbatch script and submits it.

Each node's one task is `launch.node` itself, not a pickled function: Slurm's signals reach it directly (under proctrack/cgroup
they reach nothing but a step's direct child), the frozen code runs, a compute node needs no submitit, and the script that is kept
runs by hand. For this two underscored methods of SlurmExecutor are used, and held by tests against the real cluster.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launch.plan import Plan
from trainer.config.layout import Attempt, RunDir, write_json

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor


class SlurmError(Exception):
    """A Slurm command failed; the message shows it and what it said."""


def command(run: RunDir, plan: Plan) -> str:
    """What srun starts on each node, as a shell word list. -P keeps the current folder from shadowing the frozen code."""
    python = plan.python if Path(plan.python).is_absolute() else sys.executable
    return shlex.join(["env", f"PYTHONPATH={run.code}", python, "-P", "-m", "launch.node", str(run.path), "--slurm"])


def _executor(run: RunDir, plan: Plan) -> SlurmExecutor:
    from submitit.slurm.slurm import SlurmExecutor

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # a script can be shown where there is no srun

    executor = Executor(run.slurm)
    executor._internal_update_parameters(**plan.slurm)
    return executor


def script(run: RunDir, plan: Plan) -> str:
    """The batch script that submit will submit."""
    return str(_executor(run, plan)._make_submission_file_text(command(run, plan), ""))


def submit(run: RunDir, plan: Plan) -> tuple[Attempt, str]:
    """Queues the run; returns its first attempt and Slurm's job id. Raises SlurmError."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    if shutil.which("sbatch") is None:
        raise SlurmError("there is no sbatch here: submit from a login node, or use --backend local")
    run.slurm.mkdir(parents=True, exist_ok=True)
    try:
        job = _executor(run, plan)._submit_command(command(run, plan))
    except (FailedJobError, FailedSubmissionError) as error:
        raise SlurmError(f"sbatch refused the job:\n{error}") from None
    write_json(run.slurm_job, {"job_id": job.job_id, "script": str(job.paths.submission_file)})
    attempt = run.attempt(f"slurm-{job.job_id}.0")
    attempt.path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(job.paths.submission_file, attempt.script)
    return attempt, str(job.job_id)


def states(job_ids: list[str]) -> dict[str, str]:
    """Slurm's state of each job that is in its queue, from squeue. Raises SlurmError where squeue does not answer."""
    if not job_ids or shutil.which("squeue") is None:
        return {}
    argv = ["squeue", "-h", "-o", "%A %T"]
    listing = subprocess.run(argv, capture_output=True, text=True, check=False)
    if listing.returncode:  # an empty answer would mean that the jobs are gone, and a submit would start them again
        raise SlurmError(f"`{shlex.join(argv)}` failed ({listing.returncode}): {listing.stderr.strip()}")
    found = dict(line.split(None, 1) for line in listing.stdout.splitlines() if " " in line)
    return {job: found[job].strip() for job in job_ids if job in found}


def queue_entry(job_id: str) -> tuple[str, str, str, str]:
    """A waiting job: (state, reason, when it may start, when it was submitted), in Slurm's words. Raises SlurmError."""
    argv = ["squeue", "-h", "-j", job_id, "-o", "%T|%r|%S|%V"]
    listing = subprocess.run(argv, capture_output=True, text=True, check=False)
    if listing.returncode:
        raise SlurmError(f"`{shlex.join(argv)}` failed ({listing.returncode}): {listing.stderr.strip()}")
    state, reason, start, since = ((listing.stdout.splitlines() or ["gone"])[0] + "|||").split("|")[:4]
    return state, reason, start, since


def cancel(job_id: str, state: str) -> None:
    """Stops the job after a checkpoint where it runs (launch.node gets USR2, finds cancel.json and does not requeue); else at once.

    Raises SlurmError.
    """
    argv = ["scancel", "--signal=USR2", job_id] if state == "RUNNING" else ["scancel", job_id]
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SlurmError(f"`{shlex.join(argv)}` failed ({result.returncode}): {result.stderr.strip()}")
