"""Jobs that an earlier version queued: they run, are continued and cancelled by this one, and
nothing is queued twice.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.runs import state
from tests import old_version
from tests.cli import SHORT, Shell, outcome, step_reached, wait_for
from tests.slurm.conftest import Slurm
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

ONE_RANK = (
    "--set",
    "resources.nproc_per_node=1",
    "--set",
    "resources.cpus_per_task=1",
    "--backend",
    "slurm",
)
SEEDS = ("--set", "sweep.grid.train.seed=[0,1]")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_version.extract(tmp_path_factory.mktemp("old") / "project")


def runs_of(shell: Shell) -> list[RunDir]:
    return [RunDir(path.parent) for path in sorted(shell.runs.glob("*/config.json"))]


def queue(cluster: Slurm) -> list[str]:
    return cluster.run("squeue", "-h", "-r", "-o", "%i").splitlines()


def is_completed(run: RunDir) -> bool:
    return run.outcome.exists() and outcome(run).status == "completed"


def test_a_queued_array_is_known_and_runs(shell: Shell, cluster: Slurm, old: Path) -> None:
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        old_version.shell_of(old, shell).run("submit", "digits", *SHORT, *SEEDS, *ONE_RANK)
        jobs = queue(cluster)
        assert "digits.sweep: 2 points: 2 queued" in shell.run("status", "digits")
        assert "waits in the queue as Slurm job" in shell.run("why", runs_of(shell)[0].run_id)
        again = shell.run("submit", "digits", *SHORT, *SEEDS, *ONE_RANK)
        assert "2 running" in again
        assert queue(cluster) == jobs
    finally:
        cluster.run("scontrol", "update", "partition=main", "state=up")

    runs = runs_of(shell)
    wait_for("both points", lambda: all(is_completed(run) for run in runs), timeout_s=240)
    assert all(len(run.all_attempts()) == 1 for run in runs)
    assert "digits.sweep: 2 points: 2 completed" in shell.run("status", "digits.sweep")


def test_a_running_job_is_left_alone_cancelled_and_continued(
    shell: Shell, cluster: Slurm, old: Path
) -> None:
    long_job = ("digits", *SHORT, "--set", "train.epochs=60", *ONE_RANK)
    old_version.shell_of(old, shell).run("submit", *long_job)
    run = shell.only_run()
    wait_for("step 20", step_reached(run, 20))
    job = state.slurm_job(run)
    assert f"{run.run_id} is running" in shell.run("submit", *long_job)
    assert f"{run.run_id} runs: step" in shell.run("why", run.run_id)
    assert queue(cluster) == [job]

    # The job's own launch.node, which is the earlier version's, finds the cancel of this one.
    assert "stops after a checkpoint" in shell.run("cancel", run.run_id)
    wait_for("its outcome", lambda: run.outcome.exists())
    assert outcome(run).verdict == "cancelled"
    wait_for("an empty queue", lambda: not queue(cluster))

    code = read_json(run.code_record)["sha256"]
    assert "queued as Slurm job" in shell.run("submit", *long_job)
    wait_for("its end", lambda: is_completed(run), timeout_s=240)
    assert read_json(run.code_record)["sha256"] == code
    first, second = run.all_attempts()
    assert (first.id, second.id) == (f"slurm-{job}.0", f"slurm-{state.slurm_job(run)}.0")
    assert "continued from step-" in second.rank_log(0).read_text()
