"""`after`: a job that begins when another one is completed; both are submitted by one command."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from launch.spec import load
from launch.spec.job import Job
from launch.spec.yaml_tree import SpecError
from tests.cli import Shell, outcome
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

TINY = """
train:
  epochs: 1
  max_steps: 2
  global_batch_size: 100
  data: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd, lr: 0.1}
  seed: SEED
resources: {nproc_per_node: 1, cpus_per_task: 1}
tracking: {mode: disabled}
"""


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """pretrain, finetune after it, evaluate after that."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    for seed, (name, before) in enumerate(
        {"pretrain": "", "finetune": "after: pretrain", "evaluate": "after: finetune"}.items()
    ):
        (folder / f"{name}.yaml").write_text(TINY.replace("SEED", str(seed)) + before + "\n")
    return folder


def run_of(shell: Shell, job: str) -> RunDir:
    (found,) = shell.runs.glob(f"{job}-*/config.json")
    return RunDir(found.parent)


@pytest.mark.long
def test_a_chain_is_run_in_its_order_and_each_once(jobs: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "runs")
    printed = shell.run("submit", str(jobs / "evaluate.yaml"))
    ends = [
        printed.index(f"{job}-{rest}")
        for job in ("pretrain", "finetune", "evaluate")
        for rest in [run_of(shell, job).run_id.partition("-")[2] + " completed"]
    ]
    assert (
        ends == sorted(ends)
        and "evaluate comes after finetune:" in printed
        and "finetune comes after pretrain:" in printed
    )
    runs = [run_of(shell, job) for job in ("pretrain", "finetune", "evaluate")]
    assert [read_json(run.plan)["after"] for run in runs] == [
        None,
        str(runs[0].path),
        str(runs[1].path),
    ]
    again = shell.run("submit", str(jobs / "evaluate.yaml"))
    assert again.count(" is done: ") == 3 and all(len(run.all_attempts()) == 1 for run in runs)
    assert "after      finetune, which is submitted along" in shell.run(
        "show", str(jobs / "evaluate.yaml")
    )


@pytest.mark.parametrize(
    ("more", "options", "told"),
    [
        ("", ["--prune"], "--prune is for a job with a sweep; finetune has none"),
        (
            "resources: {gpus_per_node: 1}",
            ["--strict-resources"],
            "--strict-resources: the job asks for 1 GPU(s), this machine has",
        ),
        (
            "sweep: {search: {trials: 2, choices: {train.epochs: [1, 2]}}}",
            ["--prune", "--set", "train.data.validation=0.1"],
            "--prune is for a sweep whose points stand in the job",
        ),
        (
            "container: {image: none-such}",
            ["--backend", "docker"],
            "the engine has no image 'none-such'",
        ),
    ],
)
def test_what_is_refused_is_refused_before_the_job_before_it_trains(
    jobs: Path, tmp_path: Path, more: str, options: list[str], told: str
) -> None:
    text = TINY.replace("SEED", "1").replace(
        "resources: {nproc_per_node: 1, cpus_per_task: 1}\n", ""
    )
    (jobs / "finetune.yaml").write_text(f"{text}after: pretrain\n{more}\n")
    shell = Shell(tmp_path / "runs", env=(("PATH", f"{engine(tmp_path)}:{os.environ['PATH']}"),))
    printed = shell.run(
        "submit", *options, str(jobs / "finetune.yaml"), code=1 if "docker" in options else 2
    )
    assert told in printed and "comes after" not in printed and not shell.runs.exists()


def engine(folder: Path) -> Path:
    """A folder with a `docker` that has no image."""
    program = folder / "bin" / "docker"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Error: No such image' >&2\nexit 1\n")
    program.chmod(0o755)
    return program.parent


def test_what_comes_after_a_failure_is_not_started(jobs: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path / "runs")
    with (jobs / "pretrain.yaml").open("a") as file:
        file.write("extends: broken\n")
    (jobs / "broken.yaml").write_text("train: {init: {name: normal, std: 1.0e+38}}\n")
    printed = shell.run("submit", str(jobs / "finetune.yaml"), code=1)
    assert (
        f"finetune was not started: {run_of(shell, 'pretrain').run_id} is not completed" in printed
    )
    assert not list(shell.runs.glob("finetune-*"))


@pytest.mark.long
def test_a_run_that_goes_on_by_its_id_still_asks_for_the_one_before_it(
    jobs: Path, tmp_path: Path
) -> None:
    shell = Shell(tmp_path / "runs")
    shell.run("submit", str(jobs / "finetune.yaml"))
    finetune, pretrain = run_of(shell, "finetune"), run_of(shell, "pretrain")
    for run in (finetune, pretrain):
        run.outcome.unlink()
        shutil.rmtree(run.attempts)
    # by the job's name, pretrain would be trained again first
    printed = shell.run("submit", finetune.run_id, code=1)
    assert (
        outcome(finetune).cause == f"{pretrain.run_id}, which comes before, is not begun"
        and "data" in printed
    )
    assert (
        shell.run("why", finetune.run_id)
        .splitlines()[-1]
        .startswith(f"to try: `batchyard why {pretrain.run_id}`")
    )


def test_a_sweep_has_no_one_result_to_come_after(jobs: Path) -> None:
    with (jobs / "pretrain.yaml").open("a") as file:
        file.write("sweep: {grid: {train.optimizer.lr: [0.1, 0.2]}}\n")
    for job, named in (
        ("finetune", "pretrain.yaml is a sweep"),
        ("evaluate", "pretrain.yaml is a sweep"),
    ):
        with pytest.raises(SpecError, match=named):
            load.load(Job(job, jobs / f"{job}.yaml"), (), without_gpu=False)
