"""What a node asks Slurm and asks of it: why a job ends, when its time is over, and that it goes on. Standard library only."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launch import slurm_commands
from launch.slurm_commands import SlurmError
from trainer.config.layout import Attempt, RunDir, read_json, write_json
from trainer.config.outcome import Outcome, retries

ANSWER_S = 10.0


def in_slurms_words(outcome: Outcome, attempt: Attempt, job: str) -> Outcome:
    """Why a job was asked to stop, as Slurm tells; the trainer has a signal and the clock alone to judge by.

    A person's scancel must not be answered by a requeue; near the time limit a preemption looks like a timeout.
    """
    if outcome.verdict not in ("preempted", "timeout", "killed"):
        return outcome
    shown = ask("scontrol", "show", "job", "-o", job)
    record = read_json(attempt.record) or {}
    preempted = unix_s(shown, "PreemptTime") >= record["started"] - 1  # one of an earlier attempt does not count
    if not preempted and cancelled(shown, attempt, record.get("deadline")):
        outcome = replace(outcome, status="stopped", verdict="cancelled", cause="cancelled by scancel", hint=None)
    elif outcome.verdict == "timeout" and preempted:
        outcome = replace(outcome, verdict="preempted", cause="preempted by another job")
    else:
        return outcome
    keep(partial(outcome.write, attempt.outcome))
    return outcome


def cancelled(shown: str, attempt: Attempt, deadline: float | None) -> bool:
    """Whether `scontrol show job` tells of a scancel before the time limit. While a job ends its state reads COMPLETING, whatever
    ended it: a requeue is told apart by its count of restarts, a lost node by its reason, the limit by the clock."""
    if "JobState=CANCELLED" not in shown and "JobState=COMPLETING Reason=None" not in shown:
        return False
    restarts = re.search(r"\bRestarts=(\d+)", shown)
    same = restarts is not None and restarts[1] == attempt.id.rpartition(".")[2]
    return same and (deadline is None or unix_s(shown, "EndTime") < deadline - 2)


def unix_s(shown: str, word: str) -> float:
    """The time of that word in what `scontrol show job` printed, which is local; 0 where there is none."""
    found = re.search(rf"\b{word}=(\d\S+)", shown)
    return time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S")) if found else 0.0


def goes_on(run: RunDir, attempt: Attempt, outcome: Outcome) -> bool:
    """Whether Slurm shall start the run again: the budget of its verdict counts over the attempts of one submit."""
    follows = (read_json(run.slurm_job) or {}).get("follows", ())
    jobs = {attempt.id.rpartition(".")[0], *(f"slurm-{job}" for job in follows)}
    earlier = [end.budget for a in run.all_attempts() if a != attempt and a.id.rpartition(".")[0] in jobs
               and (end := Outcome.read(a.outcome))]
    return not run.cancel.exists() and retries(outcome.budget, earlier)


def start_again(run: RunDir, plan: dict[str, Any], attempt: Attempt, job: str, environment: Mapping[str, str]) -> None:
    """Requeues the job; where the site allows none (slurm.requeue: false), queues another one that begins when it has ended.

    Explicitly: a job that exits in its grace time has ended for Slurm. job: <array>_<task>, for the array's id would take all.
    """
    if "no-requeue" not in plan.get("slurm", {}).get("additional_parameters", {}):
        done = slurm_commands.run("scontrol", "requeue", job, order=True)
        print(done.stderr, end="", file=sys.stderr)
        return
    queue_behind(run, attempt, job, job, environment)


def queue_behind(run: RunDir, attempt: Attempt, job: str, behind: str, environment: Mapping[str, str]) -> bool:
    """Queues the attempt's script again, behind another job, in the place of `job`; whether that went well. environment: of this
    process."""
    own = attempt.script if attempt.script.exists() else run.attempt(f"slurm-{job}.0").script
    token = f"batchyard:{uuid.uuid4().hex}"
    argv = [f"--comment={_comment(own)}{token}", f"--dependency=afterany:{behind}", str(own)]
    if folder := environment.get("SLURM_SUBMIT_DIR"):  # where the lines of slurm.setup run, not where we are
        argv.insert(0, f"--chdir={folder}")
    try:
        follower = slurm_commands.submit(token, *argv)
    except SlurmError as error:
        print(f"launch.node: no job follows this one: {error}", file=sys.stderr)
        return False
    record = read_json(run.slurm_job) or {}
    script = run.attempt(f"slurm-{follower}.0").script
    script.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(own, script)
    write_json(run.slurm_job, {"job_id": follower, "logs": str(run.slurm), "follows": [*record.get("follows", ()), job]})
    print(f"Slurm job {follower} goes on with {run.run_id}", flush=True)
    return True


def _comment(script: Path) -> str:
    """What the site has in each job's comment, for the one of the command line takes its place."""
    found = re.search(r"^#SBATCH --comment=(.*)$", script.read_text(), re.M)
    return f"{' '.join(shlex.split(found[1]))} " if found else ""


def ask(*argv: str) -> str:
    """What the command prints; nothing where Slurm does not answer."""
    return slurm_commands.look(*argv, limit_s=ANSWER_S)


def keep(write: Callable[[], None]) -> None:
    """Writes, and says where that fails: a disk that became full or read-only must not change how the attempt ends."""
    try:
        write()
    except OSError as error:
        print(f"launch.node: {error}", file=sys.stderr)
