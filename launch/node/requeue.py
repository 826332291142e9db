"""What a node asks Slurm and asks of it: why a job ends, when its time is over, and that it goes
on. Standard library only.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launch import slurm_commands
from launch.runs.evidence import checkpoint_step
from launch.runs.restarts import NextStart, ended_attempts, next_start
from launch.runs.verdict import conclude
from launch.slurm_commands import SlurmError
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome

ANSWER_S = 10.0


def end_of(run: RunDir, attempt: Attempt, plan: Mapping[str, Any], job: str | None) -> NextStart:
    """How the attempt ended, with Slurm's word on it, and whether another one follows it by itself.
    job: None outside Slurm.
    """
    outcome = conclude(run, attempt)
    begun = read_json(attempt.record) or {}
    outcome = replace(
        outcome,
        generation=begun.get("generation"),
        new_steps=new_steps(run, outcome, begun.get("from_step")),
    )
    if job is None:
        return NextStart(outcome, follows=False)
    outcome = in_slurms_words(outcome, attempt, job)
    if run.cancel.exists():
        return NextStart(outcome, follows=False)
    earlier = [end for _, end in ended_attempts(run, attempt.id, outcome.generation)]
    return next_start(outcome, earlier, plan.get("slurm", {}))


def new_steps(run: RunDir, outcome: Outcome, from_step: int | None) -> int:
    """The steps that the attempt leaves beyond those it began with.

    A trainer's word promises a checkpoint of its last step.
    """
    promised = (
        outcome.written_by.startswith("trainer") and "checkpoint_problem" not in outcome.extra
    )
    kept = outcome.global_step if promised else checkpoint_step(run)
    return max(0, (kept or 0) - (from_step or 0))


def in_slurms_words(outcome: Outcome, attempt: Attempt, job: str) -> Outcome:
    """Why a job was asked to stop, as Slurm tells; the trainer has a signal and the clock alone to
    judge by.

    A person's scancel must not be answered by a requeue; near the time limit a preemption looks
    like a timeout.
    """
    if outcome.verdict not in ("preempted", "timeout", "killed"):
        return outcome
    shown = show(job)
    record = read_json(attempt.record) or {}
    # one of an earlier attempt does not count
    preempted = unix_s(shown, "PreemptTime") >= record["started"] - 1
    if not preempted and cancelled(shown, attempt, record.get("deadline")):
        return replace(
            outcome, status="stopped", verdict="cancelled", cause="cancelled by scancel", hint=None
        )
    if outcome.verdict == "timeout" and preempted:
        outcome = replace(outcome, verdict="preempted", cause="preempted by another job")
    return replace(outcome, preempted_by_slurm=preempted)


def is_cancelled(attempt: Attempt, job: str, deadline: float | None) -> bool:
    """Whether a person's scancel ends the job now, as Slurm tells."""
    return cancelled(show(job), attempt, deadline)


def show(job: str) -> str:
    return ask("scontrol", "show", "job", "-o", job)


def cancelled(shown: str, attempt: Attempt, deadline: float | None) -> bool:
    """Whether `scontrol show job` tells of a scancel before the time limit.

    While a job ends its state reads COMPLETING, whatever ended it: a requeue is told apart by its
    count of restarts, a lost node by its reason, the limit by the clock.
    """
    if "JobState=CANCELLED" not in shown and "JobState=COMPLETING Reason=None" not in shown:
        return False
    restarts = re.search(r"\bRestarts=(\d+)", shown)
    same = restarts is not None and restarts[1] == attempt.id.rpartition(".")[2]
    return same and (deadline is None or unix_s(shown, "EndTime") < deadline - 2)


def unix_s(shown: str, word: str) -> float:
    """The time of that word in what `scontrol show job` printed, which is local; 0 where there is
    none.
    """
    found = re.search(rf"\b{word}=(\d\S+)", shown)
    return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else 0.0


def start_again(
    run: RunDir,
    plan: Mapping[str, Any],
    attempt: Attempt,
    following: NextStart,
    job: str,
    environment: Mapping[str, str],
) -> bool:
    """Requeues the job; where that is refused, or the site allows none (slurm.requeue: false),
    queues another one that begins when it has ended. Returns whether the run goes on; where it does
    not, the outcome then says so, and what to do.

    Explicitly: a job that exits in its grace time has ended for Slurm. job: <array>_<task>, for the
    array's id would take all.
    """
    allowed = "no-requeue" not in plan.get("slurm", {}).get("additional_parameters", {})
    refused = requeue(job, following.delay_s) if allowed else ""
    if refused is None:
        return True
    unqueued = queue_behind(run, attempt, job, job, environment, following.delay_s)
    if unqueued is None:
        return True
    why = "; ".join(problem for problem in (refused, unqueued) if problem)
    print(f"launch.node: nothing follows {attempt.id}: {why}", file=sys.stderr)
    outcome = replace(
        following.outcome,
        cause=f"{following.outcome.cause}; nothing follows: {why}",
        hint=(
            f"`batchyard submit {run.run_id}` continues it; nothing here starts it again by itself"
        ),
    )
    publish(run, attempt, outcome)
    return False


def publish(run: RunDir, attempt: Attempt, outcome: Outcome) -> None:
    """Writes the run's outcome, and the attempt's where it says something else than what is there.

    The trainer's file stays as the trainer left it: what launch.node alone knows is in
    attempt.json.
    """
    left = Outcome.read(attempt.outcome)
    own = outcome.without_node()
    if left is None or left.without_node() != own:
        keep(partial(own.write, attempt.outcome))
    keep(partial(outcome.write, run.outcome))


def requeue(job: str, delay_s: int) -> str | None:
    """Puts the job back into the queue, to start in `delay_s` at the earliest.

    Returns None, or why that failed.
    """
    try:
        done = slurm_commands.run("scontrol", "requeue", job, order=True)
        if done.returncode > 0:  # below: ended by the signals that the requeue itself brought
            return f"`scontrol requeue {job}` failed: {done.stderr.strip()}"
        if delay_s:  # only now: a job that runs takes no start time
            slurm_commands.look("scontrol", "update", f"JobId={job}", f"StartTime=now+{delay_s}")
    except SlurmError as error:
        return str(error)
    return None


def queue_behind(
    run: RunDir,
    attempt: Attempt,
    job: str,
    behind: str,
    environment: Mapping[str, str],
    delay_s: int = 0,
) -> str | None:
    """Queues the attempt's script again, behind another job, in the place of `job`.

    Returns None, or why that failed. environment: of this process.
    """
    own = attempt.script if attempt.script.exists() else run.attempt(f"slurm-{job}.0").script
    if not own.exists():
        return f"there is no {own} to queue"
    token = f"batchyard:{uuid.uuid4().hex}"
    later = [f"--begin=now+{delay_s}"] if delay_s else []
    argv = [
        f"--comment={_comment(own)}{token}",
        f"--dependency=afterany:{behind}",
        *later,
        str(own),
    ]
    # where the lines of slurm.setup run, not where we are
    if folder := environment.get("SLURM_SUBMIT_DIR"):
        argv.insert(0, f"--chdir={folder}")
    try:
        follower = slurm_commands.submit(token, *argv)
    except SlurmError as error:
        return str(error)
    record = read_json(run.slurm_job) or {}
    newer = {
        "job_id": follower,
        "logs": str(run.slurm),
        "follows": [*record.get("follows", ()), job],
    }
    script = run.attempt(f"slurm-{follower}.0").script
    # the job is in the queue, whatever the disk takes
    keep(partial(write_text, script, own.read_text()))
    keep(partial(write_json, run.slurm_job, newer))
    print(f"Slurm job {follower} goes on with {run.run_id}", flush=True)
    return None


def _comment(script: Path) -> str:
    """What the site has in each job's comment, for the one of the command line takes its place."""
    found = re.search(r"^#SBATCH --comment=(.*)$", script.read_text(), re.M)
    return f"{' '.join(shlex.split(found[1]))} " if found else ""


def ask(*argv: str) -> str:
    """What the command prints; nothing where Slurm does not answer."""
    return slurm_commands.look(*argv, limit_s=ANSWER_S)


def keep(write: Callable[[], None]) -> None:
    """Writes, and says where that fails: a disk that became full or read-only must not change how
    the attempt ends.
    """
    try:
        write()
    except OSError as error:
        print(f"launch.node: {error}", file=sys.stderr)
