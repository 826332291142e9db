"""A search on a real cluster: an array whose tasks choose their trials as they begin; requeued,
cancelled, submitted once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.runs import sweep_records
from tests.cli import Shell, outcome, step_reached, wait_for
from tests.slurm.conftest import Slurm
from tests.test_search import decisions
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.study import open_study

JOB = """
train:
  epochs: EPOCHS
  global_batch_size: 64
  data: {name: digits, validation: 0.2}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd}
execution: {log_every_steps: 5}
resources: {cpus_per_task: 1}
tracking: {mode: disabled}
sweep:
  array_parallelism: 2
  search:
    trials: TRIALS
    sampler: random
    ranges: {train.optimizer.lr: {low: 0.01, high: 1.0, log: true}}
    halving: HALVING
"""


def job(folder: Path, *, trials: int, epochs: int = 4, halving: str = "null") -> str:
    path = folder / "s.yaml"
    path.write_text(
        JOB.replace("EPOCHS", str(epochs))
        .replace("TRIALS", str(trials))
        .replace("HALVING", halving)
    )
    return str(path)


def begun(shell: Shell) -> list[dict[str, Any]]:
    """The trials that have begun, by their numbers."""
    found = sweep_records.submits(SweepDir(shell.runs / "s.sweep"))
    return sorted(found[-1]["points"], key=lambda p: int(p["trial"])) if found else []


def run(shell: Shell, number: int) -> RunDir:
    return RunDir(shell.runs / begun(shell)[number]["run_id"])


def states(shell: Shell) -> list[str]:
    study = open_study(
        SweepDir(shell.runs / "s.sweep").journal, begun(shell)[0]["study"], "accuracy", None
    )
    return [t.state.name for t in study.get_trials()]


def test_trials_are_queued_once_chosen_late_and_cancelled_together(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    cluster.run("scontrol", "update", "partition=main", "state=down")  # nothing starts
    printed = shell.run("submit", job(tmp_path, trials=3), "--backend", "slurm")
    assert (
        "s.sweep: 3 trials: 3 to begin" in printed
        and "queued 3 trials as Slurm job array" in printed
        and not begun(shell)
    )
    # one more of the same search
    again = shell.run("submit", job(tmp_path, trials=4), "--backend", "slurm")
    assert "queued 1 trial as Slurm job array" in again
    assert len(cluster.run("squeue", "-h", "-r", "-o", "%i").splitlines()) == 4
    assert "s.sweep: no further point begins" in shell.run("cancel", "s.sweep")
    assert not cluster.run("squeue", "-h", "-r", "-o", "%i") and not begun(shell)
    cluster.run("scontrol", "update", "partition=main", "state=up")
    shell.run("submit", job(tmp_path, trials=2), "--backend", "slurm")
    wait_for(
        "the end of both", lambda: len(begun(shell)) == 2 and states(shell) == ["COMPLETE"] * 2
    )
    for trial in begun(shell):
        assert (
            trial["axes"]["train.optimizer.lr"]
            == read_json(run(shell, trial["trial"]).config)["train"]["optimizer"]["lr"]
        )
    assert "s.sweep: 2 trials: 2 done" in shell.run("submit", "s.sweep", "--backend", "slurm")


@pytest.mark.long
def test_a_trial_that_is_requeued_goes_on_as_the_same(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    shell.run("submit", job(tmp_path, trials=3, epochs=40), "--backend", "slurm")
    wait_for("two trials", lambda: len(begun(shell)) == 2)
    first = run(shell, 0)
    wait_for("step 10 of the first", step_reached(first, 10))
    slurm_job = str(read_json(first.slurm_job)["job_id"])
    cluster.run("scancel", "--signal=USR2", slurm_job)
    wait_for(
        "the end of all",
        lambda: len(begun(shell)) == 3 and states(shell) == ["COMPLETE"] * 3,
        timeout_s=240,
    )
    assert [a.id for a in first.all_attempts()] == [f"slurm-{slurm_job}.0", f"slurm-{slurm_job}.1"]
    assert "continued from step-" in first.all_attempts()[1].rank_log(0).read_text()
    script = first.all_attempts()[0].script.read_text()
    assert str(first.path) in script and "template" not in script
    assert first.code.is_symlink() and "3 completed" in shell.run("status", "s.sweep")


@pytest.mark.long
def test_sixteen_trials_stop_as_optuna_says_and_one_is_taken_up_again(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    name = job(tmp_path, trials=16, halving="{min_epochs: 1, reduction_factor: 2}")
    shell.run("submit", name, "--backend", "slurm")
    wait_for("five trials", lambda: len(begun(shell)) >= 5, timeout_s=240)
    shell.run("cancel", "s.sweep")
    wait_for("an empty queue", lambda: not cluster.run("squeue", "-h"))
    assert len(begun(shell)) < 16
    shell.run("submit", name, "--backend", "slurm")
    wait_for(
        "all", lambda: len(begun(shell)) == 16 and not cluster.run("squeue", "-h"), timeout_s=600
    )
    assert set(states(shell)) == {"COMPLETE", "PRUNED"}
    pruned, expected = decisions(shell, begun(shell)[0]["study"])
    assert pruned == expected and 4 <= len(pruned) < 16
    loser = run(shell, next(iter(pruned)))
    assert outcome(loser).verdict == "pruned"
    shell.run("submit", loser.run_id, "--backend", "slurm")
    cluster.wait(str(read_json(loser.slurm_job)["job_id"]), "COMPLETED", timeout_s=120)
    assert outcome(loser).status == "completed"


@pytest.mark.long
def test_a_trial_of_two_nodes(shell: Shell, cluster: Slurm, tmp_path: Path) -> None:
    shell.run("submit", job(tmp_path, trials=1), "--backend", "slurm", "--set", "resources.nodes=2")
    wait_for("its end", lambda: begun(shell) and states(shell) == ["COMPLETE"], timeout_s=180)
    # the second node ends a moment after the first
    wait_for("an empty queue", lambda: not cluster.run("squeue", "-h"))
    (attempt,) = run(shell, 0).all_attempts()
    assert read_json(attempt.record)["world_size"] == 2 and attempt.node_record(1).exists()
