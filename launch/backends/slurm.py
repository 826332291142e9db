"""The Slurm backend. The only module that imports submitit, which writes the sbatch scripts.

Each node's one task is `launch.node` itself, not a pickled function: Slurm's signals reach it
directly (under proctrack/cgroup they reach nothing but a step's direct child), the frozen code
runs, a compute node needs no submitit, and the script that is kept runs by hand. For this two
underscored methods of SlurmExecutor are used, and held by tests against the real cluster.

A job is submitted once: an intent is written first, its token is the job's comment, and after any
error of sbatch, or of this process, the queue is searched for the token before anything is
submitted again. launch.slurm_commands runs Slurm's commands.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import slurm_commands as commands
from launch import text as launch_text
from launch.backends.queue import states
from launch.runs import frozen_code, records
from launch.runs.state import slurm_job
from launch.slurm_commands import SlurmError
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.layout import Attempt, RunDir, SweepDir

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

    # which may hold all that a job does: `status` asks only for states
    from launch.plan.build import Plan


def command(what: Path, code: Path, plan: Plan, module: str = "launch.node") -> str:
    """What srun starts on each node, as a shell word list. what: a run's directory, or the file
    that lists an array's; for launch.sweeps.trial a sweep's directory.

    -P keeps the current folder from shadowing the frozen code, and Python's own modules.
    """
    python = plan.python if Path(plan.python).is_absolute() else sys.executable
    return shlex.join(
        [
            "env",
            f"PYTHONPATH={frozen_code.on_path(code)}",
            python,
            "-P",
            "-m",
            module,
            str(what),
            "--slurm",
        ]
    )


def executor_of(folder: Path, plan: Plan) -> SlurmExecutor:
    from submitit.slurm.slurm import SlurmExecutor, SlurmJobEnvironment

    # submitit reads it from the environment, where KILL would lose each attempt's end
    SlurmJobEnvironment.USR_SIG = "USR2"

    class Executor(SlurmExecutor):
        @classmethod
        def affinity(cls) -> int:
            return 1  # a script can be shown where there is no srun

    executor = Executor(folder)
    # only in the names of logs, where Slurm fills in %j
    executor.folder = Path(str(executor.folder).replace("%", "%%"))
    executor._internal_update_parameters(**plan.slurm)
    return executor


def script(run: RunDir, plan: Plan) -> str:
    """The batch script that submit will submit."""
    executor = executor_of(run.slurm, plan)
    executor.parameters.update(parameters_to_wait(plan))
    return str(executor._make_submission_file_text(command(run.path, run.code, plan), ""))


def parameters_to_wait(plan: Plan, *others: str) -> dict[str, Any]:
    """submitit's parameters for a job that waits: for the run that must be completed first, while
    that is in the queue, and for `others`. Where nothing may be requeued the parent's job ends
    whenever it stops: launch.node then looks for its follower.
    """
    conditions, more = list(others), dict(plan.slurm["additional_parameters"])
    job = slurm_job(RunDir(Path(plan.after))) if plan.after else None
    try:
        waits = job is not None and job in states([job])
    except commands.NotHere:  # `show` on a machine of no cluster
        waits = False
    if waits:
        conditions.append(f"{'afterany' if 'no-requeue' in more else 'afterok'}:{job}")
        more["kill-on-invalid-dep"] = "yes"  # a job behind one that failed would wait for ever
    return {"dependency": ",".join(conditions), "additional_parameters": more} if conditions else {}


def submit(run: RunDir, plan: Plan) -> tuple[Attempt, str]:
    """Queues the run; returns its first attempt and Slurm's job id. Raises SlurmError."""
    run.slurm.mkdir(parents=True, exist_ok=True)
    text = script(run, plan)
    job_id = sbatch(text, run.slurm, plan)
    attempt = run.attempt(f"slurm-{job_id}.0")
    write_text(attempt.script, text)
    queued(run, job_id, run.slurm)
    return attempt, job_id


def queued(run: RunDir, job: str, logs: Path, *, sync: bool = True) -> None:
    """Records the run's newest Slurm job, and its attempt, of which earlier ones no longer tell
    where the run stands. One that has begun meanwhile has told of itself, or of the job that
    follows it.

    job: as squeue shows it, `12` or `12_3`.
    """
    run.attempt(f"slurm-{job}.0").path.mkdir(parents=True, exist_ok=True)
    own = read_json(run.slurm_job) or {}
    if job not in (own.get("job_id"), *own.get("follows", ())):
        write_json(run.slurm_job, {"job_id": job, "logs": str(logs)}, sync=sync)
    if intent_file(run.slurm).exists():
        intent_file(run.slurm).unlink()


def sbatch(text: str, folder: Path, plan: Plan, listing: Path | None = None) -> str:
    """Submits a script; returns the job's id.

    The intent stays until the caller has recorded the job, or Slurm has refused it.

    Raises SlurmError, and OtherCluster.
    """
    commands.refuse_other_cluster(submitting=True)
    if shutil.which("sbatch") is None:
        raise SlurmError(
            "there is no sbatch here: submit from a login node, or use --backend local"
        )
    token = f"batchyard:{uuid.uuid4().hex}"
    file = listing.with_suffix(".sh") if listing else folder / "submission.sh"
    file.write_text(text)
    intent = {"token": token, "time": time.time(), "listing": str(listing) if listing else None}
    write_json(intent_file(folder), intent)
    theirs = plan.slurm.get("additional_parameters", {}).get("comment")
    comment = f"{theirs} {token}" if theirs else token
    try:
        return commands.submit(token, f"--comment={comment}", str(file))
    except commands.Refused:
        intent_file(folder).unlink()
        raise
    except commands.Lost as lost:
        write_json(intent_file(folder), {**intent, "lost": str(lost)})
        raise SlurmError(_way_out(lost, folder)) from None


def intent_file(folder: Path) -> Path:
    """Stands from before sbatch until the job is recorded. Writer: this module."""
    return folder / "intent.json"


def has_intent(sweep: SweepDir) -> bool:
    """Whether an array of the sweep may be in the queue that is not recorded yet."""
    return intent_file(sweep.slurm).exists()


def adopt(run: RunDir) -> None:
    """Where a submit was interrupted between sbatch and its record: records the job that it queued.

    Raises SlurmError.
    """
    intent = records.read(intent_file(run.slurm), records.INTENT) or {}
    if job := intended(intent, run.slurm):
        queued(run, job, run.slurm)
    intent_file(run.slurm).unlink(missing_ok=True)


def intended(intent: dict[str, Any], folder: Path) -> str | None:
    """The job that an earlier submit has queued.

    Raises SlurmError, also where Slurm took one that is not here: a second one would do the same
    work.
    """
    job = commands.find(intent["token"]) if intent else None
    if job is None and "lost" in intent:
        raise SlurmError(_way_out(intent["lost"], folder))
    return job


def _way_out(lost: object, folder: Path) -> str:
    file = launch_text.shown(intent_file(folder))
    return f"{lost}. If there is none, remove {file}: until then nothing is submitted again"
