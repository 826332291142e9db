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

import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch import environment
from launch import slurm_commands as commands
from launch.runs import array_listing, find, records
from launch.runs.array_listing import Task
from launch.slurm_commands import SlurmError
from launch.submit import snapshot
from trainer.config.files.layout import Attempt, RunDir, SweepDir, read_json, write_json, write_text

if TYPE_CHECKING:
    from submitit.slurm.slurm import SlurmExecutor

    # which may hold all that a job does: `status` asks only for states
    from launch.plan.build import Plan

FIRST_ARRAY_LIMIT = 1001  # Slurm's own default of MaxArraySize


@dataclass(frozen=True)
class Piece:
    """Points start..stop of a sweep as one job array, of which at most `at_once` tasks run. after:
    the number of the piece that must have ended before; None: none.
    """

    start: int
    stop: int
    at_once: int
    after: int | None


def pieces(points: int, largest: int, at_once: int) -> list[Piece]:
    """Cuts a sweep into arrays of at most `largest` tasks, as even as can be, none of whose tasks
    run beyond `at_once` together.

    Arrays do not know of each other's limits: so they are chained into lanes, whose limits add up
    to `at_once`.
    """
    count = -(-points // largest)
    lanes = min(count, at_once)
    limits = [at_once // lanes + (lane < at_once % lanes) for lane in range(lanes)]
    return [
        Piece(
            points * i // count,
            points * (i + 1) // count,
            limits[i % lanes],
            i - lanes if i >= lanes else None,
        )
        for i in range(count)
    ]


def command(what: Path, code: Path, plan: Plan, module: str = "launch.node") -> str:
    """What srun starts on each node, as a shell word list. what: a run's directory, or the file
    that lists an array's; for launch.sweeps.trial a sweep's directory.

    -P keeps the current folder from shadowing the frozen code, and Python's own modules.
    """
    python = plan.python if Path(plan.python).is_absolute() else sys.executable
    return shlex.join(
        [
            "env",
            f"PYTHONPATH={snapshot.on_path(code)}",
            python,
            "-P",
            "-m",
            module,
            str(what),
            "--slurm",
        ]
    )


def _executor(folder: Path, plan: Plan) -> SlurmExecutor:
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
    executor = _executor(run.slurm, plan)
    executor.parameters.update(_behind(plan))
    return str(executor._make_submission_file_text(command(run.path, run.code, plan), ""))


def _behind(plan: Plan, *others: str) -> dict[str, Any]:
    """submitit's parameters for a job that waits: for the run that must be completed first, while
    that is in the queue, and for `others`. Where nothing may be requeued the parent's job ends
    whenever it stops: launch.node then looks for its follower.
    """
    conditions, more = list(others), dict(plan.slurm["additional_parameters"])
    job = find.slurm_job(RunDir(Path(plan.after))) if plan.after else None
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
    job_id = _sbatch(text, run.slurm, plan)
    attempt = run.attempt(f"slurm-{job_id}.0")
    write_text(attempt.script, text)
    queued(run, job_id, run.slurm)
    return attempt, job_id


def submit_sweep(
    points: Sequence[tuple[Task, Plan]],
    sweep: SweepDir,
    code: dict[str, Any],
    data: list[dict[str, Any]],
    at_once: int,
) -> list[str]:
    """Queues the points of a sweep as job arrays; returns the arrays' ids. code, data: as
    `array_listing.write` takes them.

    Raises SlurmError; what was queued before it stays, and is recorded.
    """
    folder, ids = sweep.slurm, list[str]()
    folder.mkdir(parents=True, exist_ok=True)
    cut, listings = pieces(len(points), _largest_array(), at_once), []
    for piece in cut:
        first, plan = points[piece.start]
        of_piece = [task for task, _ in points[piece.start : piece.stop]]
        listings.append(array_listing.write(sweep, of_piece, script(first.run, plan), code, data))
    os.sync()  # what the jobs will read is on the disk before they are in the queue
    for piece, listing in zip(cut, listings, strict=True):
        plan = points[piece.start][1]
        behind = [] if piece.after is None else [ids[piece.after]]
        ids.append(
            _submit_array(
                sweep, plan, piece, command(listing, Path(code["root"]), plan), listing, behind
            )
        )
        _record(listing, ids[-1])
        _intent(folder).unlink(missing_ok=True)
    return ids


def _record(listing: Path, job: str) -> None:
    for run, of_task in array_listing.queued(listing, job):
        queued(run, of_task, listing.parent, sync=False)
    os.sync()


def submit_trials(
    sweep: SweepDir, plan: Plan, code: Path, tasks: int, at_once: int, behind: Sequence[str]
) -> list[str]:
    """Queues job arrays of a search, whose tasks choose their trials as they begin, behind other
    jobs; returns the arrays' ids.

    plan: of a run as they will be. Raises SlurmError; what was queued before it stays, and is
    recorded.
    """
    # earlier versions had it elsewhere, and a search may be frozen with one
    module = snapshot.module_of(code, "launch.sweeps.trial", "launch.trial")
    if module is None:
        raise commands.SlurmError(f"{code} has no launch.sweeps.trial: --new starts another search")
    ids = list[str]()
    sweep.slurm.mkdir(parents=True, exist_ok=True)
    for piece in pieces(tasks, _largest_array(), at_once):
        listing = sweep.slurm / f"trials-{uuid.uuid4().hex[:12]}.json"
        write_json(listing, {"tasks": piece.stop - piece.start})
        start, before = (
            command(sweep.path, code, plan, module),
            (behind if piece.after is None else [ids[piece.after]]),
        )
        ids.append(_submit_array(sweep, plan, piece, start, listing, before))
        write_json(listing, {"tasks": piece.stop - piece.start, "job_id": ids[-1]})
        _intent(sweep.slurm).unlink(missing_ok=True)
    return ids


def waiting_trials(sweep: SweepDir) -> list[str]:
    """The tasks of a search's arrays that are in the queue and have not chosen a trial.

    Raises SlurmError.
    """
    arrays = [
        found
        for p in sweep.slurm.glob("trials-*.json")
        if "job_id" in (found := records.read(p, records.TRIALS) or {})
    ]
    tasks = [f"{array['job_id']}_{task}" for array in arrays for task in range(array["tasks"])]
    return [job for job in states([job for job in tasks if not sweep.chosen(job).exists()])]


def _submit_array(
    sweep: SweepDir, plan: Plan, piece: Piece, start: str, listing: Path, behind: Sequence[str]
) -> str:
    """Submits one job array; returns its id. start: what srun starts; behind: jobs that must have
    ended before.
    """
    executor = _executor(sweep.slurm, plan)
    more = {
        "job_name": sweep.sweep_id,
        "map_count": piece.stop - piece.start,
        "array_parallelism": piece.at_once,
    }
    executor.parameters.update(more, **_behind(plan, *(f"afterany:{job}" for job in behind)))
    return _sbatch(executor._make_submission_file_text(start, ""), sweep.slurm, plan, listing)


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
    if _intent(run.slurm).exists():
        _intent(run.slurm).unlink()


def _sbatch(text: str, folder: Path, plan: Plan, listing: Path | None = None) -> str:
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
    write_json(_intent(folder), intent)
    theirs = plan.slurm.get("additional_parameters", {}).get("comment")
    comment = f"{theirs} {token}" if theirs else token
    try:
        return commands.submit(token, f"--comment={comment}", str(file))
    except commands.Refused:
        _intent(folder).unlink()
        raise
    except commands.Lost as lost:
        write_json(_intent(folder), {**intent, "lost": str(lost)})
        raise SlurmError(_way_out(lost, folder)) from None


def _intent(folder: Path) -> Path:
    """Stands from before sbatch until the job is recorded. Writer: this module."""
    return folder / "intent.json"


def has_intent(sweep: SweepDir) -> bool:
    """Whether an array of the sweep may be in the queue that is not recorded yet."""
    return _intent(sweep.slurm).exists()


def adopt(run: RunDir) -> None:
    """Where a submit was interrupted between sbatch and its record: records the job that it queued.

    Raises SlurmError.
    """
    intent = records.read(_intent(run.slurm), records.INTENT) or {}
    if job := _intended(intent, run.slurm):
        queued(run, job, run.slurm)
    _intent(run.slurm).unlink(missing_ok=True)


def _intended(intent: dict[str, Any], folder: Path) -> str | None:
    """The job that an earlier submit has queued.

    Raises SlurmError, also where Slurm took one that is not here: a second one would do the same
    work.
    """
    job = commands.find(intent["token"]) if intent else None
    if job is None and "lost" in intent:
        raise SlurmError(_way_out(intent["lost"], folder))
    return job


def _way_out(lost: object, folder: Path) -> str:
    file = environment.shown(_intent(folder))
    return f"{lost}. If there is none, remove {file}: until then nothing is submitted again"


def adopt_sweep(sweep: SweepDir) -> None:
    """Likewise for the array that was being queued."""
    intent = records.read(_intent(sweep.slurm), records.INTENT) or {}
    if job := _intended(intent, sweep.slurm):
        listing = Path(intent["listing"])
        listed = read_json(listing) or {}
        if "tasks" in listed:  # which choose their trials
            write_json(listing, {**listed, "job_id": job})
        elif listed:
            _record(listing, job)
    _intent(sweep.slurm).unlink(missing_ok=True)


def _largest_array() -> int:
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
