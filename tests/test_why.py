"""`batchyard why`: five lines or fewer for a run in any state.

The run directories are laid out here; squeue is a fake one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.console import why
from launch.runs import state
from tests import ranks
from tests.cli import Shell
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import Outcome
from trainer.ranks.watchdog import Watchdog


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of 30 steps that has not started."""
    return ranks.make_run(
        tmp_path / "runs", ranks.config("t-0123abcd", ranks=2), {"samples": {"train": 1437}}
    )


@pytest.fixture
def held(run: RunDir) -> Iterator[RunDir]:
    """A run whose attempt runs, as far as its lock tells: this process holds it."""
    lock = Lock(run.lock)
    assert lock.acquire(attempt="local-1")
    started(run, time.time() - 200)
    yield run
    lock.release()


def started(run: RunDir, at: float, attempt: str = "local-1", **more: Any) -> None:
    write_json(
        run.attempt(attempt).record,
        {"started": at, "world_size": 2, "nodes": 1, "host": "n1", **more},
    )


def beat(run: RunDir, rank: int, *, seen: float, since: float, **place: Any) -> None:
    now = time.time()
    told = {
        "step": 12,
        "time": now - seen,
        "since": now - since,
        "phase": "step",
        "where": "trainer/train.py:118 in gradients",
    }
    write_json(run.attempt("local-1").rank_heartbeat(rank), {**told, "collective": True, **place})


def checkpoint(run: RunDir, step: int) -> None:
    folder = run.checkpoints / f"step-{step}.local-1"
    folder.mkdir(parents=True)
    (run.checkpoints / "latest").symlink_to(folder.name)


def ended(run: RunDir, status: Any, verdict: Any, attempt: str = "local-1", **details: Any) -> None:
    started(run, time.time() - 300, attempt, ended=time.time() - 60)
    Outcome(status, verdict, attempt, "t", **details).write(run.attempt(attempt).outcome)


def answer(run: RunDir, slurm: dict[str, str] | None = None) -> list[str]:
    lines = why.answer(run, state.standing(run, slurm))
    assert 1 <= len(lines) <= 5 and all(line and "\n" not in line for line in lines), lines
    return lines


def test_a_new_run(run: RunDir) -> None:
    assert answer(run) == [
        "t-0123abcd was made and never started; `batchyard submit t-0123abcd` starts it"
    ]


def test_a_running_one(held: RunDir) -> None:
    rows = (
        '{"kind": "train", "global_step": 8, "loss": 0.51234}',
        '{"kind": "eval", "global_step": 8, "accuracy": 0.9}',
    )
    held.metrics.write_text("\n".join(rows) + "\n")
    held.timing.write_text(
        '{"attempt": "local-1", "global_step": 8, "images_per_s": 4321.0, "step_time_s": 0.5}\n'
    )
    for rank in (0, 1):
        beat(held, rank, seen=2, since=1, phase="evaluation")
    first, second = answer(held)
    assert (
        first.startswith("t-0123abcd runs: step 12 of 30, as local-1 on ")
        and "(3 min 20 s ago)" in first
    )
    assert (
        second
        == "loss 0.5123; test accuracy 90.00 %; 4,321 images/s, about 9.0 s left; now in evaluation"
    )


def test_one_that_starts(held: RunDir) -> None:
    started(held, time.time() - 5)
    assert answer(held)[1] == "its ranks start"


def test_one_that_stalls_names_the_rank_that_is_waited_for(held: RunDir) -> None:
    beat(held, 0, seen=2, since=400)
    beat(
        held,
        1,
        seen=2,
        since=400,
        collective=False,
        phase="data",
        where="trainer/batches/batches.py:81 in _make",
    )
    lines = answer(held)
    assert (
        lines[0].startswith("t-0123abcd stalls: no progress since ")
        and "at step 12 of 30" in lines[0]
    )
    assert (
        lines[1]
        == "rank 1 stands at trainer/batches/batches.py:81 in _make (data); rank 0 waits for it"
    )
    assert "after 10 min 00 s without progress it is ended" in lines[2]
    beat(held, 1, seen=100, since=400)
    assert answer(held)[1].startswith(
        "rank 1 gives no sign any more, last seen at trainer/train.py:118"
    )
    beat(held, 0, seen=100, since=400)
    assert "frozen" in answer(held)[1]


def test_a_start_that_stalls(held: RunDir) -> None:
    assert "stalls" in answer(held)[0] and answer(held)[1].startswith(
        "none of its ranks has come up"
    )


def test_slow_steps_are_no_stall(held: RunDir) -> None:
    held.timing.write_text(
        '{"attempt": "local-1", "global_step": 8, "images_per_s": 4.0, "step_time_s": 30.0}\n'
    )
    beat(held, 0, seen=2, since=400)
    assert "runs: step 12" in answer(held)[0]


def test_a_rank_that_has_made_its_steps_is_not_in_start_up(run: RunDir) -> None:
    """ "Now in start-up" at step 345 of 345."""
    rank = Watchdog(run.attempt("local-1"), 0, None)
    assert rank.look()["phase"] == "start-up"
    rank.step = 345
    assert rank.look()["phase"] == "shutdown"


def test_a_stopped_one(run: RunDir) -> None:
    checkpoint(run, 20)
    ended(run, "stopped", "preempted", global_step=20, cause="asked to stop")
    first, second = answer(run)
    assert first.startswith("t-0123abcd stopped (preempted) at ") and first.endswith(
        "ago), local-1: asked to stop"
    )
    assert (
        second == "at step 20 of 30; `batchyard submit t-0123abcd` continues from the checkpoint of"
        " step 20"
    )


def test_a_cancelled_one_that_never_ran(run: RunDir) -> None:
    write_json(run.cancel, {})
    assert "was cancelled before it started" in answer(run)[0]


def test_a_failed_one(run: RunDir) -> None:
    where = {"where": "trainer/models/resnet.py:7 in forward"}
    ended(
        run,
        "failed",
        "user_error",
        rank=1,
        global_step=7,
        cause="ValueError: a bug",
        hint="look at rank-1.log",
        extra=where,
    )
    first, second, third = answer(run)
    assert "failed (user_error) at" in first and first.endswith(
        "local-1: rank 1: ValueError: a bug"
    )
    assert (
        second == "at trainer/models/resnet.py:7 in forward; the last good step was 7 of 30; "
        "`batchyard submit t-0123abcd` starts it anew: there is no checkpoint yet"
    )
    assert third == "to try: look at rank-1.log"


def test_not_finite_is_not_the_last_good_step(run: RunDir) -> None:
    ended(
        run,
        "failed",
        "nan",
        global_step=8,
        cause="the gradient of step 8 is not finite",
        hint="lower the rate",
    )
    assert "the last good step was 7 of 30" in answer(run)[1]


def test_a_dead_one_is_judged_without_a_trace(run: RunDir) -> None:
    checkpoint(run, 10)
    started(run, time.time() - 300)
    write_json(
        run.attempt("local-1").rank_evidence(1),
        {"rank": 1, "time": 1.0, "type": "KeyError", "message": "'x'", "step": 11},
    )
    before = sorted(run.path.rglob("*"))
    lines = answer(run)
    assert "failed (user_error)" in lines[0] and "rank 1: KeyError: 'x'" in lines[0]
    assert (
        "the last good step was 11 of 30" in lines[1]
        and "from the checkpoint of step 10" in lines[1]
    )
    assert sorted(run.path.rglob("*")) == before
    run.attempt("local-1").rank_evidence(1).unlink()
    assert "launch.node on n1 left no word" in answer(run)[0]


def test_a_slurm_job_that_vanished_before_it_began(run: RunDir) -> None:
    write_json(run.slurm_job, {"job_id": "7"})
    assert (
        answer(run, {})[0]
        == "t-0123abcd is dead: Slurm job 7 is gone, and no attempt of it has begun"
    )


@pytest.mark.parametrize(
    ("restarted", "first"),
    [
        (False, "stopped (preempted) at"),
        (True, "is between the queue and its first word"),
    ],
)
def test_one_whose_job_is_still_ending(
    run: RunDir, tmp_path: Path, restarted: bool, first: str
) -> None:
    """ "Between the queue and its first word", although its outcome was known."""
    write_json(run.slurm_job, {"job_id": "7", "logs": "x"})
    attempt = run.attempt("slurm-7.0")
    write_json(attempt.record, {"started": time.time() - 60, "ended": time.time()})
    Outcome("stopped", "preempted", attempt.id, "trainer rank 0", 400, cause="asked to stop").write(
        attempt.outcome
    )
    start = time.strftime(
        "%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + (30 if restarted else -61))
    )
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    times = f"{start}|2026-01-01T00:00:00"
    squeue.write_text(
        f"#!/bin/sh\ncase \"$*\" in *%S*) echo 'COMPLETING|None|{times}';; *) echo"
        " '7|COMPLETING|None';; esac\n"
    )
    squeue.chmod(0o755)
    shell = Shell(run.path.parent, env=(("PATH", f"{squeue.parent}:{os.environ['PATH']}"),))
    lines = shell.run("why", run.run_id).splitlines()
    assert f"{run.run_id} {first}" in lines[0] and "asked to stop" in lines[1 if restarted else 0]
    assert restarted or lines[1].startswith("its Slurm job 7 is still COMPLETING")


def test_a_completed_one(run: RunDir) -> None:
    ended(run, "stopped", "preempted", attempt="local-0")
    ended(run, "completed", "completed", attempt="local-2", global_step=30, test_accuracy=0.9876)
    first, second = answer(run)
    assert first.startswith(
        "t-0123abcd completed: 30 steps in 2 attempts, test accuracy 98.76 %, at "
    )
    assert second == "report: `batchyard report t-0123abcd` makes it"


@pytest.mark.parametrize(
    ("reason", "meaning"),
    [
        ("Resources", "it waits for nodes to become free"),
        ("QOSMaxJobsPerUserLimit", "a limit of its QOS is reached"),
        ("PartitionTimeLimit", "so that it never starts"),
        ("JobHeldUser", "`scontrol release 7` lets it go"),
        ("BeginTime", "it was started again"),
        ("SomethingNew", "Slurm gives this reason"),
    ],
)
def test_one_that_waits_has_slurms_reason_in_words(
    run: RunDir, tmp_path: Path, reason: str, meaning: str
) -> None:
    write_json(run.slurm_job, {"job_id": "7"})
    ended(
        run,
        "failed",
        "infrastructure",
        attempt="slurm-7.0",
        cause="OSError: [Errno 5] Input/output error",
        rank=1,
    )
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    times = "2026-11-25T05:00:00|2026-11-25T03:00:00"
    squeue.write_text(
        f"#!/bin/sh\ncase \"$*\" in *%S*) echo 'PENDING|{reason}|{times}';; *) echo"
        f" '7|PENDING|{reason}';; esac\n"
    )
    squeue.chmod(0o755)
    shell = Shell(run.path.parent, env=(("PATH", f"{squeue.parent}:{os.environ['PATH']}"),))
    lines = shell.run("why", "t").splitlines()
    assert lines[0].startswith(
        "t-0123abcd waits in the queue as Slurm job 7 since 2026-11-25T03:00:00: "
    )
    assert meaning in lines[0] and lines[0].endswith(f"({reason})")
    assert lines[1] == "it starts about 2026-11-25T05:00:00, as Slurm guesses now"
    assert lines[2].startswith("before, it failed (infrastructure) at")
    assert lines[2].endswith("rank 1: OSError: [Errno 5] Input/output error")
    assert lines[3] == "`batchyard cancel t-0123abcd` takes it out of the queue" and len(lines) == 4
