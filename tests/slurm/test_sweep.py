"""A sweep on a real cluster: each point a job of its own, queued, passed over while it waits, cancelled together."""

from __future__ import annotations

from pathlib import Path

from tests.cli import SHORT, Shell
from tests.slurm.conftest import Slurm
from trainer.config.layout import RunDir, read_json


def test_points_are_queued_once_and_cancelled_together(tmp_path: Path, cluster: Slurm) -> None:
    shell = Shell(tmp_path / "runs", env=(*cluster.env.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache"))))
    seeds = (*SHORT, "--set", "sweep.grid.train.seed=[0, 1]", "--backend", "slurm")
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        printed = shell.run("submit", "digits", *seeds)
        runs = [RunDir(p.parent) for p in sorted(shell.runs.glob("*/config.json"))]
        jobs = [str(read_json(run.slurm_job)["job_id"]) for run in runs]
        assert len(runs) == 2 and all(f"queued as Slurm job {job}" in printed for job in jobs)
        assert {cluster.squeue(job)["name"] for job in jobs} == {run.run_id for run in runs}
        assert "digits.sweep: 2 points: 2 queued" in shell.run("status", "digits")
        again = shell.run("submit", "digits", *seeds)
        assert "digits.sweep: 2 points: 2 running" in again and "queued as Slurm job" not in again
        shell.run("cancel", "digits.sweep")
        for job in jobs:
            cluster.wait(job, "CANCELLED")
    finally:
        cluster.run("scontrol", "update", "partition=main", "state=up")
    assert "digits.sweep: 2 points: 2 stopped" in shell.run("show", "digits", *seeds)
