"""Sweeps as large as people make them: thousands that wait, limits that hold, arrays
that are cut.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli import Shell, outcome, wait_for
from tests.slurm.cluster import Options
from tests.slurm.conftest import Slurm, booted
from tests.slurm.test_sweep import HERE, job, queue, runs_of
from trainer.config.files.json_files import read_json

pytestmark = pytest.mark.long
BRIEF = (
    *HERE,
    "--set",
    "train.epochs=1",
    "--set",
    "train.max_steps=2",
    "--set",
    "tracking.mode=disabled",
    "--backend",
    "slurm",
)


def sweep_of(values: list[int], *more: str) -> tuple[str, ...]:
    return ("submit", "digits", *BRIEF, "--set", f"sweep.grid.train.seed={values}", *more)


def watched(shell: Shell, slurm: Slurm, points: int, timeout_s: float) -> int:
    """Waits until all points are done; returns the most tasks that were seen running at once, by
    Slurm (for which a task that completes has ended) or by the attempts' own times.
    """
    runs, most = runs_of(shell), 0
    assert len(runs) == points

    def all_done() -> bool:
        nonlocal most
        most = max(
            most, len(slurm.run("squeue", "-h", "-r", "-t", "running", "-o", "%i").splitlines())
        )
        return all(run.outcome.exists() and outcome(run).status == "completed" for run in runs)

    wait_for(f"{points} points", all_done, timeout_s)
    records = [read_json(attempt.record) for run in runs for attempt in run.all_attempts()]
    return max(
        most,
        *(sum(r["started"] <= one["started"] < r["ended"] for r in records) for one in records),
    )


def test_2500_points_wait_and_exactly_the_11_that_are_missing_are_submitted_again(
    shell: Shell, cluster: Slurm
) -> None:
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        printed = shell.run(*sweep_of(list(range(2500))), timeout_s=900)
        assert "queued 2,500 points as Slurm job array" in printed
        runs = runs_of(shell)
        before = set(queue(cluster))
        assert before == {job(run) for run in runs} and len(before) == 2500
        again = shell.run(*sweep_of(list(range(2500))), timeout_s=900)
        assert (
            "2500 running" in again
            and "queued" not in again.replace("is queued", "")
            and set(queue(cluster)) == before
        )

        for run in runs[100:107]:
            cluster.run("scancel", job(run))
        for run in runs[200:203]:
            shutil.rmtree(run.path)
        values = [*range(2499), 9999]
        left = set(queue(cluster))
        assert len(left) == 2493
        printed = shell.run(*sweep_of(values), timeout_s=900)
        assert "queued 11 points as Slurm job array" in printed, printed
        new = set(queue(cluster)) - left
        assert len(new) == 11 and len({task.split("_")[0] for task in new}) == 1
        asked = [run for run in runs_of(shell) if job(run) in new]
        assert [read_json(run.config)["train"].get("seed", 0) for run in asked] == [
            *range(100, 107),
            *range(200, 203),
            9999,
        ]
        table = shell.run("status", "digits.sweep", timeout_s=300)
        assert "2,500 points: 2500 queued" in table or "2,501 points: 2501 queued" in table, table[
            -300:
        ]
    finally:
        cluster.run("scancel", "-u", "root")
        cluster.run("scontrol", "update", "partition=main", "state=up")


def test_20_points_with_a_limit_of_4(shell: Shell, cluster: Slurm) -> None:
    shell.run(*sweep_of(list(range(20)), "--set", "sweep.array_parallelism=4"))
    assert watched(shell, cluster, 20, 900) == 4
    assert "20 points: 20 completed" in shell.run("status", "digits.sweep")


@pytest.mark.parametrize("accounting", [True, False])
def test_30_points_where_an_array_may_have_11_and_a_limit_of_2(
    cluster_dir: Path, tmp_path: Path, accounting: bool
) -> None:
    with booted(
        Path(f"{cluster_dir}-small"),
        Options(accounting=accounting, settings={"MaxArraySize": "11"}),
    ) as slurm:
        shell = Shell(
            tmp_path / "runs", env=(*slurm.env.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache")))
        )
        printed = shell.run(*sweep_of(list(range(30)), "--set", "sweep.array_parallelism=2"))
        assert (
            "at most 2 at once" in printed
            and len({job(run).split("_")[0] for run in runs_of(shell)}) == 3
        )
        assert watched(shell, slurm, 30, 1200) == 2
