"""`batchyard why RUN`: why a run is where it is, in five lines or fewer.

Reads the run directory, and asks Slurm where it waits.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch.runs import array_listing, records
from launch.runs import progress as runs_progress
from launch.runs.evidence import checkpoint_step
from launch.runs.state import Standing, slurm_job
from launch.runs.verdict import judge, standing_still, waited_for
from launch.slurm_commands import SlurmError
from launch.text import shown
from launch.words import seconds
from trainer.config.files.json_files import open_file
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome

STALLED_S = 60.0  # without a sign of progress, unless a step takes long
FROZEN_S = 60.0  # without a heartbeat, which comes every five seconds

# Slurm's reasons, by how they begin.
REASONS = {
    "Resources": "it waits for nodes to become free",
    "Priority": "other jobs come before it",
    "BeginTime": "it was started again, for which Slurm lets two minutes pass",
    "DependencyNeverSatisfied": (
        "the job before it failed: mend that one, cancel this one and submit it again"
    ),
    "Dependency": "it waits for another job",
    "JobHeld": "it is held; `scontrol release {job}` lets it go",
    "ReqNodeNotAvail": "nodes that it needs are down, drained or reserved",
    "Reservation": "it waits for its reservation",
    "PartitionDown": "its partition is closed",
    "PartitionInactive": "its partition is closed",
    "Partition": (
        "it asks for more than its partition allows, so that it never starts: cancel it and ask for"
        " less"
    ),
    "NodeDown": "a node that it needs is down",
    "Licenses": "it waits for a license",
    "QOS": "a limit of its QOS is reached",
    "Assoc": "a limit of its account is reached",
    "BadConstraints": "no node is as it asks, so that it never starts: cancel it and ask for less",
}

# Likewise of a job that ended before launch.node began.
ENDS = {
    "BadConstraints": (
        "no node is as it asks; change resources or the site file's slurm section before you"
        " submit it"
    ),
    "JobLaunchFailure": "its node could not start it, often for want of the folder of its log",
    "DependencyNeverSatisfied": "the job before it failed",
    "NonZeroExitCode": "its script failed, as a line of the site file's slurm.setup may",
    "NodeFail": "its node failed",
    "NodeDown": "its node failed",
    "InvalidAccount": "Slurm does not take its account any more",
    "InvalidQOS": "Slurm does not take its QOS any more",
    "TimeLimit": "its time was over",
    "Prolog": "the cluster's prolog failed on its node",
}
LAST_CHARACTERS = 10_000  # of a log, in which its last line is looked for


def answer(run: RunDir, where: Standing) -> list[str]:
    """At most five lines."""
    tell: dict[str, Callable[[RunDir, Standing], list[str]]] = {
        "queued": _queued,
        "running": _running,
        "completed": _completed,
        "stopped": _stopped,
        "cancelled": _stopped,
        "pruned": _stopped,
        "failed": _failed,
        "dead": _failed,
        "unknown": _unknown,
        "unreadable": _unreadable,
    }
    if where.state not in tell:
        whose = (
            run.run_id
            if run.job.exists() or array_listing.job_text(run)
            else _sweep_of(run) or run.run_id
        )
        return [f"{run.run_id} was made and never started; `batchyard submit {whose}` starts it"]
    return tell[where.state](run, where)[:5]


def _sweep_of(run: RunDir) -> str | None:
    return (records.read(run.config, records.CONFIG) or {}).get("sweep")


def _unreadable(run: RunDir, where: Standing) -> list[str]:
    return [
        f"{run.run_id} is unreadable: {where.where}",
        (
            "put that file back from a copy, or remove it where no process writes it; "
            f"`batchyard logs {run.run_id}` still shows what the run printed"
        ),
    ]


def _queued(run: RunDir, where: Standing) -> list[str]:
    from launch.backends import queue

    job = str(where.slurm_job)
    try:
        state, reason, start, since = queue.queue_entry(job)
    except SlurmError as error:  # it answered a moment ago
        return [
            f"{run.run_id} is queued: {where.where}",
            f"Slurm tells no more: {error}".splitlines()[0],
        ]
    attempt = where.attempt
    before = records.outcome(attempt.outcome) if attempt else None
    if (
        attempt
        and before
        and state in ("RUNNING", "COMPLETING")
        and _is_of_this_start(attempt, start)
    ):
        return [
            f"{run.run_id} {_end(before, attempt)}",
            (
                f"its Slurm job {job} is still {state}; whether it starts the run again shows in a"
                " moment"
            ),
            f"`batchyard cancel {run.run_id}` takes it out of the queue",
        ]
    if state in ("RUNNING", "COMPLETING"):
        lines = [
            f"{run.run_id} is between the queue and its first word: Slurm job {job} is {state}"
        ]
    else:
        meaning = next(
            (text for word, text in REASONS.items() if reason.startswith(word)),
            "Slurm gives this reason",
        )
        lines = [
            f"{run.run_id} waits in the queue as Slurm job {job} since {since}:"
            f" {meaning.format(job=job)} ({reason})"
        ]
    if re.match(r"\d", start) and state == "PENDING":
        lines.append(f"it starts about {start}, as Slurm guesses now")
    if attempt and before:
        lines.append(f"before, it {_end(before, attempt)}")
    return [*lines, f"`batchyard cancel {run.run_id}` takes it out of the queue"]


def _is_of_this_start(attempt: Attempt, start: str) -> bool:
    """Whether an attempt that has ended is what its job, which started then (as squeue tells), was
    last started for.
    """
    ended = (records.read(attempt.record, records.ATTEMPT) or {}).get("ended")
    try:
        return ended is not None and time.mktime(
            time.strptime(start, "%Y-%m-%dT%H:%M:%S")
        ) <= float(ended)
    except ValueError:  # N/A
        return False


def _unknown(run: RunDir, where: Standing) -> list[str]:
    return [
        (
            f"{run.run_id} was queued as {where.where}, and no attempt of it has begun; whether it"
            " still waits Slurm alone knows"
        ),
        f"`batchyard why {run.run_id}` tells once Slurm answers",
    ]


def _running(run: RunDir, where: Standing) -> list[str]:
    attempt = where.attempt
    assert attempt is not None
    record, now = records.read(attempt.record, records.ATTEMPT) or {}, time.time()
    ranks = range(int(record.get("world_size") or 1))
    beats = {
        r: b for r in ranks if (b := records.evidence(attempt.rank_heartbeat(r), records.HEARTBEAT))
    }
    timings = reversed(records.rows(run.timing, records.TIMING))
    timing: dict[str, Any] = next((row for row in timings if row.get("attempt") == attempt.id), {})
    progress = runs_progress.progress(run)
    step = max(
        [progress["step"] or 0, *(b["step"] for b in beats.values() if b.get("step") is not None)]
    )
    at = f"step {step} of {progress['total'] or '?'}"
    started = float(record.get("started") or now)
    last = max((float(b["since"]) for b in beats.values()), default=started)
    if now - last > max(STALLED_S, 20 * float(timing.get("step_time_s") or 0)):
        return _stalled(run, where, beats, last, at)
    lines = [f"{run.run_id} runs: {at}, as {where.where} since {_when(started)}"]
    known = [f"loss {progress['loss']:.4g}"] if progress["loss"] is not None else []
    if progress["test_accuracy"] is not None:
        known.append(f"test accuracy {100 * progress['test_accuracy']:.2f} %")
    if timing:
        left = (progress["total"] or step) - step
        known.append(
            f"{timing['images_per_s']:,.0f} images/s, about {seconds(left * timing['step_time_s'])}"
            " left"
        )
    phases = {b.get("phase") for b in beats.values()} - {"step"}
    known += (
        [f"now in {', '.join(sorted(map(str, phases)))}"]
        if phases
        else []
        if beats
        else ["its ranks start"]
    )
    return [*lines, "; ".join(known)] if known else lines


def _stalled(
    run: RunDir, where: Standing, beats: dict[int, dict[str, Any]], last: float, at: str
) -> list[str]:
    """Running as far as its lock tells, and no progress."""
    now = time.time()
    lines = [f"{run.run_id} stalls: no progress since {_when(last)}, at {at}, as {where.where}"]
    silent = [r for r, b in beats.items() if now - float(b["time"]) > FROZEN_S]
    if not beats:
        lines.append("none of its ranks has come up; `batchyard logs` shows what the start printed")
    elif len(silent) == len(beats):
        lines.append(
            "its ranks are frozen (suspended, stopped, or cut off from this disk): last seen"
            f" {_when(last)}"
        )
    else:
        guilty = waited_for(beats, silent) or [next(iter(beats))]
        waiting = [r for r in beats if r not in guilty]
        lines.append(standing_still(guilty, beats[guilty[0]], waiting, silent=bool(silent)))
    config = records.read(run.config, records.CONFIG) or {}
    limit = config.get("execution", {}).get("hang_limit_s", 600.0)
    lines.append(
        f"after {seconds(limit)} without progress it is ended and its stacks kept"
        " (execution.hang_limit_s)"
        if limit
        else "execution.hang_limit_s is null: nothing ends it"
    )
    return [*lines, f"`batchyard cancel {run.run_id}` stops it"]


def _stopped(run: RunDir, where: Standing) -> list[str]:
    outcome, attempt = where.outcome, where.attempt
    if outcome is None or attempt is None:
        return [
            f"{run.run_id} was cancelled before it started; `batchyard submit {run.run_id}`"
            " starts it"
        ]
    since = _since(run, where, outcome)
    at = f"at step {outcome.global_step or 0} of {runs_progress.progress(run)['total'] or '?'}"
    also = (
        "is cancelled; it " if where.state == "cancelled" and outcome.verdict != "cancelled" else ""
    )
    return [f"{run.run_id} {also}{_end(outcome, attempt)}", *since, f"{at}; {_again(run)}"]


def _since(run: RunDir, where: Standing, outcome: Outcome) -> list[str]:
    """Why Slurm does not continue a run that it preempted, or whose time was over: its job has left
    the queue.
    """
    assert where.attempt is not None
    job = slurm_job(run) if where.attempt.id.startswith("slurm-") else None
    if job is None or where.state != "stopped" or outcome.verdict not in ("preempted", "timeout"):
        return []
    gone = _in_slurms_words(job)
    # it ended with the attempt, whose outcome tells why
    if gone is None or "COMPLETED" in gone or "NonZeroExitCode" in gone:
        return []
    return [f"it was to continue by itself, but {gone}"]


def _failed(run: RunDir, where: Standing) -> list[str]:
    attempt = where.attempt
    if attempt is None:
        parent = (
            RunDir(Path(before))
            if (before := (records.read(run.plan, records.PLAN) or {}).get("after"))
            else None
        )
        if parent and (
            (end := records.outcome(parent.outcome)) is None or end.status != "completed"
        ):
            how = f"{end.status} ({end.verdict})" if end else "without a result"
            return [
                f"{run.run_id} was never begun: {parent.run_id}, which comes before it, is {how}",
                f"`batchyard why {parent.run_id}` tells; submitting again goes on with both",
            ]
        return _gone(run, where)
    outcome = where.outcome or judge(run, attempt)
    last = outcome.global_step
    if last is not None and outcome.verdict == "nan":
        last -= 1
    good = (
        "no step was done"
        if last is None
        else f"the last good step was {last} of {runs_progress.progress(run)['total'] or '?'}"
    )
    place = f"at {outcome.extra['where']}; " if outcome.extra.get("where") else ""
    lines = [f"{run.run_id} {_end(outcome, attempt)}", f"{place}{good}; {_again(run)}"]
    return [*lines, f"to try: {outcome.hint}"] if outcome.hint else lines


def _gone(run: RunDir, where: Standing) -> list[str]:
    """A job that left the queue before launch.node wrote anything: Slurm's reason, and what its log
    says.
    """
    from launch.backends import queue

    record = array_listing.job_of(run) or {}
    job = str(record.get("job_id"))
    logs = Path(record.get("logs") or run.slurm)  # an array's lie with its sweep
    how = _in_slurms_words(job) or where.where
    log = queue.log_of(job, logs)
    last = _last_line(log)
    return [
        f"{run.run_id} is dead: {how}, and no attempt of it has begun",
        (
            f"its log ends with {last!r}: {shown(log)}"
            if last
            else f"it left no log in {shown(logs)}"
        ),
        f"`batchyard submit {run.run_id}` starts it again",
    ]


def _in_slurms_words(job: str) -> str | None:
    """How a job that has left the queue ended, and what Slurm's reason means; None where Slurm no
    longer tells.
    """
    from launch.backends import queue

    if not (ended := queue.fate(job)):
        return None
    reason = (re.findall(r"\((\S+)\)", ended) or [""])[0]
    meaning = next((f": {text}" for word, text in ENDS.items() if reason.startswith(word)), "")
    return f"Slurm job {job} is {ended}{meaning}"


def _last_line(log: Path) -> str | None:
    try:
        with open_file(log) as file:
            lines = file.read().decode(errors="replace")[-LAST_CHARACTERS:].split("\n")
    except OSError:
        return None
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), None)


def _completed(run: RunDir, where: Standing) -> list[str]:
    outcome, attempt, attempts = where.outcome, where.attempt, len(run.all_attempts())
    assert outcome is not None and attempt is not None
    accuracy = (
        f", test accuracy {100 * outcome.test_accuracy:.2f} %"
        if outcome.test_accuracy is not None
        else ""
    )
    several = f" in {attempts} attempts" if attempts > 1 else ""
    report = (
        shown(run.report) if run.report.exists() else f"`batchyard report {run.run_id}` makes it"
    )
    return [
        (
            f"{run.run_id} completed: {outcome.global_step} steps{several}{accuracy}, at"
            f" {_ended(attempt)}"
        ),
        f"report: {report}",
    ]


def _end(outcome: Outcome, attempt: Attempt) -> str:
    """How, when and why an attempt ended."""
    rank = f"rank {outcome.rank}: " if outcome.rank is not None else ""
    how = (
        f"{outcome.status} ({outcome.verdict})"
        if outcome.verdict != outcome.status
        else outcome.status
    )
    return f"{how} at {_ended(attempt)}, {attempt.id}" + (
        f": {rank}{outcome.cause}" if outcome.cause else ""
    )


def _ended(attempt: Attempt) -> str:
    end = (records.read(attempt.record, records.ATTEMPT) or {}).get("ended")
    if end is None:
        files = [
            p for p in (attempt.outcome, *attempt.path.glob("*.log"), attempt.path) if p.exists()
        ]
        end = files[0].stat().st_mtime
    return _when(float(end))


def _when(unix: float) -> str:
    """03:12:40 (4 min 10 s ago), with the day where it is another one."""
    then, now = time.localtime(unix), time.time()
    day = "" if then[:3] == time.localtime(now)[:3] else "%Y-%m-%d "
    return (
        f"{time.strftime(day + '%H:%M:%S', then)}"
        f" ({seconds(max(1.0, now - unix)).replace('.0 s', ' s')} ago)"
    )


def _again(run: RunDir) -> str:
    """What the next attempt continues from."""
    step = checkpoint_step(run)
    start = (
        "starts it anew: there is no checkpoint yet"
        if step is None
        else f"continues from the checkpoint of step {step}"
    )
    return f"`batchyard submit {run.run_id}` {start}"
