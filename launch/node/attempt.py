"""What runs on a node: starts the plan's command, passes signals on, and publishes the verdict.

Standard library only.

`python -P -m launch.node RUN_DIR --attempt ID` for the local and docker backends; `--slurm` on each
node of a Slurm job. It runs from the run's own code snapshot, under any Python; the trainer's
Python stands in the plan.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from launch import engine
from launch.node import requeue
from launch.node.execute import execute, leave_record
from launch.node.place import deadline_s, free_port, place
from launch.node.requeue import ask, end_of, is_cancelled, keep, queue_behind, start_again
from launch.node.signals import POLL_S, Node, Signals
from launch.runs import array_listing, evidence, restarts
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.lock import LEASE_S, Lock, LockLost, local_pid, me
from trainer.config.files.outcome import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED, Outcome

OTHER_NODES_WAIT_S = 60.0
# beside the lease that node 0 may wait for: its prolog and its container may take longer than ours
FIRST_NODE_WAIT_S = 180.0
# for the other nodes' records; torchrun gives its ranks 30 s after one failed
WORDS_WAIT_S = 45.0


def main(arguments: list[str] | None = None) -> int:
    """Runs one attempt on this node, as the arguments say. Returns batchyard's exit code."""
    parser = argparse.ArgumentParser(prog="launch.node", description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="its directory; with --slurm also a file that lists one for each task of an array",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--attempt", help="id of the attempt")
    where.add_argument(
        "--slurm",
        action="store_true",
        help="take the attempt's id and the nodes from Slurm's variables",
    )
    parser.add_argument(
        "--die-with-parent",
        action="store_true",
        help="stop after a checkpoint when the parent dies",
    )
    options = parser.parse_args(arguments)
    signals = Signals()
    if options.die_with_parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    named = options.run.absolute()
    is_listing = named.is_file()
    node = place(of_array=is_listing) if options.slurm else Node(0, options.attempt, "localhost", 0)
    run = of_array(named, node) if is_listing else RunDir(named)
    return attend(run, node, signals) if run else EXIT_DONE


def of_array(listing: Path, node: Node) -> RunDir | None:
    """The run that this task of a job array is; None, and said, where it is none any more.

    Leaves the script by which it runs alone.
    """
    task = int(os.environ["SLURM_ARRAY_TASK_ID"])
    begun = array_listing.begin(listing, task, str(node.slurm_job), first_node=node.rank == 0)
    if begun is None:
        print(
            f"task {task} of {listing}: its run was removed, or queued again since; nothing to do",
            flush=True,
        )
        return None
    run, text = begun
    script = run.attempt(f"slurm-{node.slurm_job}.0").script
    if node.rank == 0 and not script.exists():
        keep(partial(write_text, script, text))
    return run


def attend(run: RunDir, node: Node, signals: Signals) -> int:
    """Runs one attempt of that run on this node, in the run's directory.

    Returns batchyard's exit code.
    """
    os.chdir(run.path)  # on every backend: what is left in the working folder is with the run
    if over := restarts.already_over(run, node.attempt_id, first_node=node.rank == 0):
        return starts_nothing(run, node, over)
    if (parent := (read_json(run.plan) or {}).get("after")) and not is_completed(
        RunDir(Path(parent))
    ):
        return too_early(run, node, RunDir(Path(parent))) if node.rank == 0 else EXIT_DONE
    return lead(run, node, signals) if node.rank == 0 else follow(run, node, signals)


def starts_nothing(run: RunDir, node: Node, over: restarts.Over) -> int:
    """Says why; returns the exit code, which is the first node's alone: another code of another
    node might end that one.
    """
    print(f"{run.run_id} {over.reason}; {node.attempt_id} starts nothing", flush=True)
    return over.exit_code if node.rank == 0 else EXIT_DONE


def is_completed(run: RunDir) -> bool:
    outcome = Outcome.read(run.outcome)
    return outcome is not None and outcome.status == "completed"


def too_early(run: RunDir, node: Node, parent: RunDir) -> int:
    """The run that must be completed first is not: waits behind the job that goes on with it, or
    fails and says so.
    """
    attempt = run.attempt(node.attempt_id)
    attempt.path.mkdir(parents=True, exist_ok=True)
    job = str((array_listing.job_of(parent) or {}).get("job_id"))
    goes_on_as = ask("squeue", "-h", "-j", job, "-o", "%i") if node.slurm_job else ""
    if node.slurm_job and goes_on_as:
        problem = queue_behind(run, attempt, node.slurm_job, job, os.environ)
        if problem is None:
            return EXIT_DONE
        print(f"launch.node: no job follows this one: {problem}", file=sys.stderr)
    end = Outcome.read(parent.outcome)
    how = f"{end.status} ({end.verdict})" if end else "not begun"
    outcome = Outcome(
        "failed",
        "data",
        node.attempt_id,
        "launch.node",
        cause=f"{parent.run_id}, which comes before, is {how}",
        hint=f"`batchyard why {parent.run_id}`, then submit this job again",
    )
    for path in (attempt.outcome, run.outcome):
        keep(partial(outcome.write, path))
    print(f"{run.run_id} failed: {outcome.cause}", flush=True)
    return EXIT_FAILED


def lead(run: RunDir, node: Node, signals: Signals) -> int:
    """Node 0: holds the run's lock while the command runs, and publishes the outcome."""
    attempt = run.attempt(node.attempt_id)
    attempt.path.mkdir(parents=True, exist_ok=True)
    lock = Lock(run.lock)
    if not take(lock, node, signals):
        return held_by_another(run, attempt, node, signals, lock)
    try:
        # since we waited for the lock
        if over := restarts.already_over(run, node.attempt_id, first_node=True):
            return starts_nothing(run, node, over)
        plan = read_json(run.plan)
        if plan["nodes"] > 1:
            node = replace(node, master_port=free_port(node.attempt_id))
        begun = start_attempt(plan, run, node)
        if plan["backend"] == "docker" and engine.remove_leftovers(plan["argv"][0], run):
            keep(lock.verify)
        status = execute(plan, run, node, signals, lock)
        if not attempt.outcome.exists():
            wait_for_words(attempt, plan["nodes"])
        following = end_of(run, attempt, plan, node.slurm_job)
        ended = {"ended": time.time(), "exit_status": status, "signal": signals.received}
        of_node = following.outcome.of_node()
        keep(partial(write_json, attempt.record, {**begun, **ended, **of_node}))
        keep(lock.verify)
        requeue.publish(run, attempt, following.outcome)
    except LockLost as error:
        return lost(run, attempt, error)
    finally:
        keep(lock.release)

    outcome = following.outcome
    if node.slurm_job:  # for Slurm's log; locally submit tells it
        cause = f": {outcome.cause}" if outcome.cause else ""
        print(f"{run.run_id} {outcome.status} ({outcome.verdict}){cause}", flush=True)
    if node.slurm_job and following.follows:
        start_again(run, plan, attempt, following, node.slurm_job, os.environ)
    return outcome.exit_code


def start_attempt(plan: dict[str, Any], run: RunDir, node: Node) -> dict[str, Any]:
    """Writes what the attempt's directory has from its start; returns attempt.json."""
    attempt = run.attempt(node.attempt_id)
    begun = begin_record(plan, run, node)
    write_json(attempt.record, begun)
    if node.slurm_job and not attempt.script.exists():  # a requeue runs the same script again
        first = run.attempt(f"slurm-{node.slurm_job}.0").script
        if first.exists():
            shutil.copyfile(first, attempt.script)
    return begun


def begin_record(plan: dict[str, Any], run: RunDir, node: Node) -> dict[str, Any]:
    """attempt.json as it stands while the command runs."""
    return {
        "attempt": node.attempt_id,
        "backend": plan["backend"],
        "started": time.time(),
        **me(),
        "argv": [node.fill(a) for a in plan["argv"]],
        "nodes": plan["nodes"],
        "nproc_per_node": plan["nproc_per_node"],
        "world_size": plan["nodes"] * plan["nproc_per_node"],
        "master_port": node.master_port,  # the other nodes read it here
        "deadline": deadline_s(),
        # a new submit after a failure takes new code
        "code_sha256": (read_json(run.code_record) or {}).get("sha256"),
        "generation": restarts.generation_of(run, node.attempt_id),
        "from_step": evidence.checkpoint_step(run),
    }


def held_by_another(run: RunDir, attempt: Attempt, node: Node, signals: Signals, lock: Lock) -> int:
    """The run's lock could not be had.

    A job that was asked to stop while it waited for a lost node's lease starts again, unless a
    person has cancelled it. Returns batchyard's exit code.
    """
    print(f"{run.run_id} is held by {lock.owner()}", file=sys.stderr)
    if signals.received is None or node.slurm_job is None or run.cancel.exists():
        return EXIT_FAILED
    generation = restarts.generation_of(run, node.attempt_id)
    outcome = Outcome(
        "stopped",
        "preempted",
        attempt.id,
        "launch.node",
        evidence.checkpoint_step(run),
        cause="asked to stop while it waited for the lease of a lost node",
        generation=generation,
        new_steps=0,
    )
    if is_cancelled(attempt, node.slurm_job, deadline_s()):
        outcome = replace(
            outcome,
            verdict="cancelled",
            cause="cancelled by scancel, while it waited for the lease of a lost node",
        )
        keep(partial(outcome.write, attempt.outcome))
        print(f"{run.run_id} {outcome.status} ({outcome.verdict}): {outcome.cause}", flush=True)
        return outcome.exit_code
    start_again(
        run,
        read_json(run.plan),
        attempt,
        restarts.NextStart(outcome, follows=True),
        node.slurm_job,
        os.environ,
    )
    return EXIT_STOPPED


def lost(run: RunDir, attempt: Attempt, error: LockLost) -> int:
    """Another attempt runs the run, which this one lost while it was suspended or cut off from the
    disk.

    Nothing follows from this attempt, and its outcome stays with it. Returns batchyard's exit code.
    """
    cause = f"{attempt.id} lost the run to another attempt: {error}"
    generation = restarts.generation_of(run, attempt.id)
    outcome = Outcome(
        "stopped", "infrastructure", attempt.id, "launch.node", cause=cause, generation=generation
    )
    if not attempt.outcome.exists():
        keep(partial(outcome.write, attempt.outcome))
    print(f"launch.node: {cause}", file=sys.stderr, flush=True)
    return EXIT_STOPPED


def wait_for_words(attempt: Attempt, nodes: int) -> None:
    """Until each other node has told how it ended, so that the first cause is judged over all; a
    lost one never tells.
    """
    end = time.monotonic() + WORDS_WAIT_S
    while time.monotonic() < end and not all(
        attempt.node_record(n).exists() for n in range(1, nodes)
    ):
        time.sleep(POLL_S)


def take(lock: Lock, node: Node, signals: Signals) -> bool:
    """Takes the run's lock.

    One of another machine may belong to a node whose power was cut: its lease is waited for.

    Refused at once where a living process of this machine holds it.
    """
    end = time.monotonic() + LEASE_S + 10
    while not lock.acquire(attempt=node.attempt_id):
        holder = lock.holder()
        if (
            signals.received is not None
            or time.monotonic() > end
            or (holder and local_pid(holder) is not None)
        ):
            return False
        time.sleep(0.5)
    return True


def follow(run: RunDir, node: Node, signals: Signals) -> int:
    """The other nodes: exit 0, and only once the outcome is there (under KillOnBadExit another code
    would end node 0).
    """
    attempt = run.attempt(node.attempt_id)
    attempt.path.mkdir(parents=True, exist_ok=True)
    if (record := record_of_first(run, attempt, signals)) is None:
        why = "asked to stop" if signals.received is not None else "node 0 has not begun"
        print(
            f"launch.node: {node.attempt_id} starts nothing on node {node.rank}: {why}",
            file=sys.stderr,
        )
        leave_record(attempt, node, signals, 0, 0)  # which node 0 waits for
        return EXIT_DONE
    execute(
        read_json(run.plan), run, replace(node, master_port=record["master_port"]), signals, None
    )
    end = time.monotonic() + OTHER_NODES_WAIT_S
    while time.monotonic() < end:
        outcome = Outcome.read(run.outcome)
        if outcome and outcome.attempt == node.attempt_id:
            break
        time.sleep(POLL_S)
    return EXIT_DONE


def record_of_first(run: RunDir, attempt: Attempt, signals: Signals) -> dict[str, Any] | None:
    """What node 0 has decided for the attempt, once it holds the run's lock; None where it does not
    come to that.
    """
    end = time.monotonic() + LEASE_S + FIRST_NODE_WAIT_S
    while signals.received is None and time.monotonic() < end and not attempt.outcome.exists():
        # which node 0 may have made (launch.runs.array_listing)
        if (record := read_json(attempt.record)) and run.plan.exists():
            return dict(record)
        if run.cancel.exists():  # node 0 starts nothing then
            return None
        time.sleep(POLL_S)
    return None
