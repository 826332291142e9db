"""A sweep on a real cluster: job arrays with a limit, cut where the cluster's are small; requeued,
cancelled, submitted once.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from launch.runs import state
from tests.cli import SHORT, Shell, outcome, step_reached, wait_for
from tests.slurm.conftest import Slurm
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

HERE = ("--set", "resources.nproc_per_node=1", "--set", "resources.cpus_per_task=1")


def seeds(*values: int) -> tuple[str, ...]:
    return (*SHORT, *HERE, "--set", f"sweep.grid.train.seed={list(values)}", "--backend", "slurm")


def runs_of(shell: Shell) -> list[RunDir]:
    found = [RunDir(p.parent) for p in shell.runs.glob("*/config.json")]
    return sorted(found, key=lambda run: int(read_json(run.config)["train"].get("seed", 0)))


def job(run: RunDir) -> str:
    return str(state.slurm_job(run))


def queue(cluster: Slurm) -> list[str]:
    return cluster.run("squeue", "-h", "-r", "-o", "%i").splitlines()


def with_tool(shell: Shell, folder: Path, name: str, text: str) -> Shell:
    """The shell with another `name` first on PATH; {real} in its text is the real one."""
    folder.mkdir(exist_ok=True)
    path = dict(shell.env)["PATH"]
    real = subprocess.run(
        ["which", name], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / name).write_text(f"#!/bin/bash\n{text.replace('{real}', real)}\n")
    (folder / name).chmod(0o755)
    return Shell(shell.runs, env=(*shell.env, ("PATH", f"{folder}:{path}")))


def test_points_are_queued_once_as_an_array_and_cancelled_together(
    shell: Shell, cluster: Slurm, held: None
) -> None:
    printed = shell.run("submit", "digits", *seeds(0, 1))
    first, second = runs_of(shell)
    array = job(first).split("_")[0]
    assert (job(first), job(second)) == (
        f"{array}_0",
        f"{array}_1",
    ) and f"queued 2 points as Slurm job array {array}," in printed
    assert cluster.squeue(f"{array}_0")["name"] == "digits.sweep"
    # all else when it begins: test_array.py
    assert [p.name for p in second.path.iterdir()] == ["config.json"]
    assert "digits.sweep: 2 points: 2 queued" in shell.run("status", "digits")
    assert f"waits in the queue as Slurm job {array}_1 since" in shell.run("why", second.run_id)
    again = shell.run("submit", "digits", *seeds(0, 1))
    assert (
        "digits.sweep: 2 points: 2 running" in again
        and "queued 2" not in again
        and len(queue(cluster)) == 2
    )
    # also where there was nothing to queue
    assert read_json(shell.runs / "digits.sweep/sweep.json")["job"] == "digits"
    printed = shell.run("submit", "digits", *seeds(0, 2), "--prune")
    assert (
        f"{second.run_id} (Slurm job {job(second)} PENDING (PartitionDown)) stops after a"
        " checkpoint" in printed
    )
    assert job(second) not in queue(cluster)
    assert "queued 1 point as Slurm job array" in printed and len(queue(cluster)) == 2
    shell.run("cancel", "digits.sweep")
    assert "digits.sweep: 2 points: 2 stopped" in shell.run("show", "digits", *seeds(0, 1))
    assert not queue(cluster)


def test_a_point_whose_task_was_removed_goes_on_by_its_own_name(
    shell: Shell, cluster: Slurm, held: None
) -> None:
    shell.run("submit", "digits", *seeds(0, 1))
    _, second = runs_of(shell)
    removed = job(second)
    assert f"{second.run_id} is queued: Slurm job {removed} " in shell.run("submit", second.run_id)
    cluster.run("scancel", removed)
    wait_for("the end of its task", lambda: removed not in queue(cluster))
    told = shell.run("why", second.run_id)
    assert re.match(
        f"{second.run_id} is dead: Slurm job {removed} is (gone|CANCELLED), and no attempt", told
    ), told
    assert f"it left no log in {shell.runs / 'digits.sweep/slurm'}" in told
    assert "queued as Slurm job" in shell.run("submit", second.run_id, "--backend", "slurm")
    assert job(second) != removed and job(second) in queue(cluster)
    assert "digits.sweep: 2 points: 2 running" in shell.run("submit", "digits", *seeds(0, 1))
    shell.run("cancel", "digits")
    assert not queue(cluster)


def test_small_arrays_share_the_limit_and_only_the_holes_are_submitted_again(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    small = with_tool(
        shell,
        tmp_path / "bin",
        "scontrol",
        'if [ "$1 $2" = "show config" ]; then echo "MaxArraySize = 2"; else exec {real} "$@"; fi',
    )
    at_once = ("--set", "sweep.array_parallelism=2")
    printed = small.run("submit", "digits", *seeds(0, 1, 2, 3, 4), *at_once)
    runs = runs_of(shell)
    arrays = list(dict.fromkeys(job(run).split("_")[0] for run in runs))
    assert len(arrays) == 3 and f"array {', '.join(arrays)}, at most 2 at once" in printed
    most = 0

    def all_done() -> bool:
        nonlocal most
        most = max(
            most,
            len(
                cluster.run(
                    "squeue", "-h", "-r", "-t", "running,completing", "-o", "%i"
                ).splitlines()
            ),
        )
        return all(run.outcome.exists() and outcome(run).status == "completed" for run in runs)

    wait_for("five points", all_done, timeout_s=240)
    assert most == 2
    assert [read_json(run.plan)["generation"] for run in runs] == [1] * 5
    assert "digits.sweep: 5 points: 5 completed" in shell.run("status", "digits.sweep")
    here = Shell(tmp_path / "here", env=shell.env)
    here.run("submit", "digits", *SHORT, *HERE, "--backend", "local")
    assert outcome(here.only_run()).weights_sha256 == outcome(runs[0]).weights_sha256

    before = {job(run) for run in runs}
    subprocess.run(["rm", "-r", str(runs[2].path)], check=True)
    printed = shell.run("submit", "digits", *seeds(0, 1, 2, 3, 5))
    assert (
        "5 points: 3 done, 2 missing" in printed
        and f"not wanted   seed=4  {runs[4].run_id} is left as it is" in printed
    )
    assert "queued 2 points as Slurm job array" in printed
    asked = [run for run in runs_of(shell) if job(run) not in before]
    assert [read_json(run.config)["train"].get("seed", 0) for run in asked] == [2, 5]
    for run in asked:
        cluster.wait(job(run), "COMPLETED", timeout_s=120)


def test_a_task_that_is_requeued_leaves_its_sibling_alone(shell: Shell, cluster: Slurm) -> None:
    requeue_one_of_two(shell, cluster)


def requeue_one_of_two(shell: Shell, cluster: Slurm) -> None:
    shell.run("submit", "digits", *seeds(0, 1), "--set", "train.epochs=40")
    first, second = runs_of(shell)
    wait_for("both at step 10", lambda: step_reached(first, 10)() and step_reached(second, 10)())
    cluster.run("scancel", "--signal=USR2", job(second))
    wait_for("its second attempt", lambda: len(second.all_attempts()) == 2)
    for run, restarts in ((first, "0"), (second, "1")):
        assert cluster.wait(job(run), "COMPLETED", timeout_s=180)["Restarts"] == restarts
        assert outcome(run).status == "completed"
    assert second.all_attempts()[1].id == f"slurm-{job(second)}.1"
    assert "continued from step-" in second.all_attempts()[1].rank_log(0).read_text()
    assert (
        second.all_attempts()[1].script.read_text() == second.all_attempts()[0].script.read_text()
    )


@pytest.mark.parametrize(
    ("sbatch", "code"),
    [
        (
            (
                '{real} "$@" >/dev/null; echo "sbatch: error: Batch job submission failed: Socket'
                ' timed out" >&2; exit 1'
            ),
            0,
        ),
        ('{real} "$@" >/dev/null; kill -9 $PPID', -9),
    ],
)
def test_an_sbatch_that_accepts_and_then_fails_makes_one_job(
    shell: Shell, cluster: Slurm, held: None, tmp_path: Path, sbatch: str, code: int
) -> None:
    broken = with_tool(shell, tmp_path / "bin", "sbatch", sbatch)
    for what in ((*SHORT, "--backend", "slurm"), seeds(3, 4)):
        before = set(queue(cluster))
        broken.run("submit", "digits", *what, code=code)
        again = shell.run("submit", "digits", *what)
        assert "is queued" in again or "2 points: 2 running" in again, again
        assert {job(run) for run in runs_of(shell)} == set(queue(cluster)) > before
    assert len(queue(cluster)) == 3
    cluster.run("scancel", "-u", "root")


def test_a_run_that_a_killed_submit_queued_alone_is_no_hole_of_its_sweep(
    shell: Shell, cluster: Slurm, held: None, tmp_path: Path
) -> None:
    broken = with_tool(shell, tmp_path / "bin", "sbatch", '{real} "$@" >/dev/null; kill -9 $PPID')
    broken.run("submit", "digits", *SHORT, *HERE, "--backend", "slurm", code=-9)
    assert len(queue(cluster)) == 1
    assert "queued 1 point as Slurm job array" in shell.run("submit", "digits", *seeds(0, 1))
    assert {job(run) for run in runs_of(shell)} == set(queue(cluster)) and len(queue(cluster)) == 2
    cluster.run("scancel", "-u", "root")


def test_a_point_that_a_killed_submit_of_its_sweep_queued_is_not_queued_alone(
    shell: Shell, cluster: Slurm, held: None, tmp_path: Path
) -> None:
    broken = with_tool(shell, tmp_path / "bin", "sbatch", '{real} "$@" >/dev/null; kill -9 $PPID')
    broken.run("submit", "digits", *seeds(0, 1), code=-9)
    second = runs_of(shell)[1]
    assert f"{second.run_id} is queued: Slurm job {queue(cluster)[1]} " in shell.run(
        "submit", second.run_id, "--backend", "slurm"
    )
    assert len(queue(cluster)) == 2
    cluster.run("scancel", "-u", "root")


def test_an_sbatch_that_refuses_leaves_nothing_to_look_for(
    shell: Shell, held: None, tmp_path: Path
) -> None:
    broken = with_tool(
        shell, tmp_path / "bin", "sbatch", 'echo "sbatch: error: invalid account" >&2; exit 1'
    )
    assert "sbatch refused the job:\nsbatch: error: invalid account" in broken.run(
        "submit", "digits", *seeds(0, 1), code=1
    )
    assert not list(shell.runs.glob("*/slurm/intent.json"))
    assert "queued 2 points" in shell.run("submit", "digits", *seeds(0, 1))


@pytest.mark.parametrize("crowd", [12, pytest.param(50, marks=pytest.mark.long)])
def test_submits_at_once_make_one_job(shell: Shell, cluster: Slurm, held: None, crowd: int) -> None:
    for one in [
        shell.start("submit", "digits", *SHORT, "--backend", "slurm") for _ in range(crowd)
    ]:
        printed, _ = one.communicate(timeout=480)
        assert one.returncode == 0, printed
    assert len(queue(cluster)) == 1 and job(shell.only_run()) == queue(cluster)[0]
