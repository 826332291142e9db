"""The table of runs: where each stands, how far it is, what is left, and why it waits; quick
however long its files are.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from launch.console import status
from launch.runs import progress
from launch.runs.state import Standing, standing
from tests.cli import PROJECT
from trainer.config.files import lock
from trainer.config.files.json_files import read_jsonl, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "a-01234567")
    write_json(run.config, {"job": "a", "train": {}})
    rows = [
        {"kind": "train", "global_step": step, "loss": 2.0 / step} for step in range(10, 110, 10)
    ]
    rows.insert(5, {"kind": "eval", "split": "test", "global_step": 50, "accuracy": 0.625})
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run.timing.write_text(
        json.dumps({"global_step": 100, "total_steps": 700, "step_time_s": 0.5}) + "\n"
    )
    write_json(run.attempt("local-1").record, {"started": time.time() - 90, "host": "n1"})
    return run


def test_a_running_run_tells_what_is_left(run: RunDir) -> None:
    row = status.Row.of(run, Standing("running", None, run.attempt("local-1"), "local-1 on n1"))
    assert (row.step, row.loss, row.accuracy, row.left) == (
        "100/700",
        "0.02",
        "62.50 %",
        "5 min 00 s",
    )
    assert row.took in ("1 min 30 s", "1 min 31 s")


def test_an_ended_run_tells_how_long_it_took(run: RunDir) -> None:
    write_json(run.attempt("local-1").record, {"started": 1000.0, "ended": 1075.0})
    ended = Outcome("completed", "completed", "local-1", "trainer rank 0", 700, test_accuracy=0.75)
    row = status.Row.of(run, Standing("completed", ended, run.attempt("local-1"), "local-1"))
    assert (row.step, row.accuracy, row.left, row.took) == ("700/700", "75.00 %", "-", "1 min 15 s")


def test_a_waiting_run_tells_slurms_reason(run: RunDir) -> None:
    write_json(run.slurm_job, {"job_id": "12_3"})
    where = standing(run, {"12_3": "PENDING (Priority)"})
    assert (where.state, where.where, where.slurm_job) == (
        "queued",
        "Slurm job 12_3 PENDING (Priority)",
        "12_3",
    )


def test_a_completed_run_is_completed_while_its_job_ends(run: RunDir) -> None:
    write_json(run.slurm_job, {"job_id": "12"})
    attempt = run.attempt("slurm-12.0")
    write_json(attempt.record, {"started": time.time()})
    Outcome("stopped", "preempted", attempt.id, "trainer rank 0", 400).write(attempt.outcome)
    assert standing(run, {"12": "COMPLETING"}).state == "queued"
    Outcome("completed", "completed", attempt.id, "trainer rank 0", 700).write(attempt.outcome)
    assert standing(run, {"12": "COMPLETING"}).state == "completed"


def test_a_run_that_is_over_does_not_wait_while_its_job_ends(run: RunDir) -> None:
    write_json(run.slurm_job, {"job_id": "12"})
    attempt = run.attempt("slurm-12.0")
    write_json(attempt.record, {"started": time.time()})
    Outcome("failed", "user_error", attempt.id, "trainer rank 0", 400).write(attempt.outcome)
    for state in ("RUNNING", "COMPLETING"):
        assert standing(run, {"12": state}).state == "failed"
    assert standing(run, {"12": "PENDING (BeginTime)"}).state == "queued"


def test_a_lock_of_a_job_that_slurm_no_longer_has_holds_nothing(run: RunDir) -> None:
    """launch.node was killed on another machine: the run "ran" until the lease was over."""
    write_json(run.slurm_job, {"job_id": "12"})
    attempt = run.attempt("slurm-12.0")
    write_json(attempt.record, {"started": time.time()})
    elsewhere = {**lock.me(), "host": "n1", "boot": "another", "attempt": attempt.id}
    write_json(run.lock, elsewhere)
    for asked in (None, {"12": "RUNNING"}, {"12": "COMPLETING"}):
        assert standing(run, asked).state == "running"
    gone = standing(run, {})
    assert (gone.state, gone.attempt) == ("dead", attempt)
    assert standing(run, {"12": "PENDING (BeginTime)"}).state == "queued"
    write_json(run.slurm_job, {"job_id": "13"})  # Slurm was not asked for the other
    assert standing(run, {}).state == "running"
    write_json(run.slurm_job, {"job_id": "12"})
    write_json(run.lock, {**lock.me(), "attempt": attempt.id})  # a living process of this machine
    assert standing(run, {}).state == "running"


def test_the_silence_about_another_users_job_tells_nothing(run: RunDir) -> None:
    """Clusters hide other users' jobs: a colleague's run that trains was shown as dead, and a
    submit would have queued it again.
    """
    write_json(run.slurm_job, {"job_id": "12"})
    write_json(run.attempt("slurm-12.0").record, {"started": time.time()})
    write_json(run.lock, {**lock.me(), "host": "n1", "boot": "another", "attempt": "slurm-12.0"})
    as_another_user = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from launch.runs.state import standing\n"
        "from trainer.config.files.layout import RunDir\n"
        "os.chdir(sys.argv[1])\n"
        "os.geteuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
        "print(standing(RunDir(Path('.')), {}).state)\n"
    )
    if os.geteuid() == 0:
        run.path.chmod(0o755)
        done = subprocess.run(
            [sys.executable, "-c", as_another_user, str(run.path)],
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "running\n"
    assert standing(run, {}).state == "dead"


def test_a_run_that_was_cancelled_while_it_stopped_is_cancelled(run: RunDir) -> None:
    Outcome("stopped", "preempted", "local-1", "trainer rank 0", 400).write(
        run.attempt("local-1").outcome
    )
    assert standing(run).state == "stopped"
    write_json(run.cancel, {})
    assert standing(run).state == "cancelled"


def test_what_was_submitted_again_and_never_began_does_not_tell_of_the_attempt_before(
    run: RunDir,
) -> None:
    Outcome("failed", "error", "local-1", "trainer rank 0", 400).write(
        run.attempt("local-1").outcome
    )
    write_json(run.slurm_job, {"job_id": "12"})
    run.attempt("slurm-12.0").path.mkdir()
    assert standing(run, {}) == Standing("dead", None, None, "Slurm job 12 is gone")
    write_json(run.cancel, {})
    assert standing(run, {}).state == "cancelled"
    done = Outcome("completed", "completed", "local-1", "trainer rank 0", 700)
    # a task that begins after all finds nothing to do, and leaves its folder empty
    done.write(run.outcome)
    assert standing(run, {}) == Standing("completed", done, run.attempt("local-1"), "local-1")


def test_the_table(run: RunDir) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        status.show([run, RunDir(run.path.parent / "none")])
    head, first, second = out.getvalue().splitlines()
    assert head.split() == [
        "run",
        "state",
        "step",
        "loss",
        "test",
        "accuracy",
        "left",
        "where",
        "started",
        "took",
    ]
    assert first.split()[:5] == [
        "a-01234567",
        "dead",
        "100/700",
        "0.02",
        "62.50",
    ] and second.split()[:2] == ["none", "new"]


def test_of_a_long_file_only_the_end_is_read(run: RunDir) -> None:
    with run.metrics.open("a") as file:
        for step in range(110, 20_000):
            file.write(json.dumps({"kind": "train", "global_step": step, "loss": 1.0}) + "\n")
    assert run.metrics.stat().st_size > 10 * progress.LAST_BYTES
    found = read_jsonl(run.metrics, progress.LAST_BYTES)
    assert found == read_jsonl(run.metrics)[-len(found) :] and 500 < len(found) < 2000
    assert progress.progress(run)["step"] == 19_999
