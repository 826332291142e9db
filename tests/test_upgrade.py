"""Runs and sweeps of an earlier version, on this machine: read, continued to the same bits,
stopped, exported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.spec import folders, load
from launch.spec.site import Site
from launch.submit import request, snapshot
from launch.sweeps import trial
from tests import old_version
from tests.cli import PROJECT, SHORT, Shell, finish, outcome, processes_of, step_reached, wait_for
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import RunDir, SweepDir

pytestmark = pytest.mark.long

SEEDS = ("--set", "sweep.grid.train.seed=[0,1]")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_version.extract(tmp_path_factory.mktemp("old") / "project")


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, str], ...]:
    return (("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache"))),)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, old: Path, env: tuple[tuple[str, str], ...]
) -> Shell:
    """A place with one run, started and finished by the earlier version."""
    shell = Shell(tmp_path_factory.mktemp("whole") / "runs", env=env)
    old_version.shell_of(old, shell).run("submit", "digits", *SHORT)
    return shell


@pytest.fixture
def shell(tmp_path: Path, env: tuple[tuple[str, str], ...]) -> Shell:
    return Shell(tmp_path / "runs", env=env)


def same_as(run: RunDir, whole: RunDir) -> None:
    assert outcome(run).weights_sha256 == outcome(whole).weights_sha256
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_finished_run_is_read_by_every_verb(whole: Shell, tmp_path: Path) -> None:
    run = whole.only_run()
    assert "completed" in whole.run("status")
    assert "local-1" in whole.run("status", run.run_id)
    assert f"{run.run_id} completed: 184 steps" in whole.run("why", run.run_id)
    assert "step 184/184" in whole.run("logs", run.run_id)
    assert str(run.report) in whole.run("report", run.run_id)
    assert "digits" in whole.run("results")
    assert f"{run.run_id} is done: completed" in whole.run("submit", "digits", *SHORT)
    assert f"{run.run_id} is done: completed" in whole.run("submit", run.run_id)

    written = whole.run("export", run.run_id, "--out", str(tmp_path / "weights.safetensors"))
    assert f"weights_sha256 {outcome(run).weights_sha256[:16]}" in written
    whole.run("clean", "--dry-run")


def test_this_version_computes_the_same_bits(whole: Shell, shell: Shell) -> None:
    shell.run("submit", "digits", *SHORT)
    assert shell.only_run().run_id == whole.only_run().run_id
    same_as(shell.only_run(), whole.only_run())


def test_a_stopped_run_continues_with_its_frozen_code(
    whole: Shell, shell: Shell, old: Path
) -> None:
    before = old_version.shell_of(old, shell)
    process = before.start("submit", "digits", *SHORT)
    run = wait_for(
        "a run",
        lambda: shell.runs.is_dir() and list(shell.runs.glob("*/config.json")) and shell.only_run(),
    )
    wait_for("step 10", step_reached(run, 10))
    process.send_signal(signal.SIGINT)
    finish(process, code=75)
    code = read_json(run.code_record)["sha256"]
    stopped = outcome(run).global_step

    printed = shell.run("submit", "digits", *SHORT)
    assert f"continued from step-{stopped}.local-1" in printed
    assert read_json(run.code_record)["sha256"] == code
    assert outcome(run).attempt == "local-2"
    same_as(run, whole.only_run())


def test_a_killed_run_continues(whole: Shell, shell: Shell, old: Path) -> None:
    before = old_version.shell_of(old, shell)
    process = before.start(
        "submit", "digits", *SHORT, "--set", "execution.checkpoint_every_steps=10"
    )
    run = wait_for(
        "a run",
        lambda: shell.runs.is_dir() and list(shell.runs.glob("*/config.json")) and shell.only_run(),
    )
    wait_for("step 30", step_reached(run, 30))
    process.kill()
    process.communicate()
    wait_for("the end of all processes", lambda: not processes_of(run))

    assert "continued from step-" in shell.run("submit", "digits", *SHORT)
    same_as(run, whole.only_run())


def test_a_running_run_is_left_alone_and_cancelled(shell: Shell, old: Path) -> None:
    before = old_version.shell_of(old, shell)
    process = before.start("submit", "digits", *SHORT, "--set", "train.epochs=80")
    run = wait_for(
        "a run",
        lambda: shell.runs.is_dir() and list(shell.runs.glob("*/config.json")) and shell.only_run(),
    )
    wait_for("step 10", step_reached(run, 10))

    assert f"{run.run_id} is running" in shell.run("submit", run.run_id)
    assert "running" in shell.run("status")
    assert f"{run.run_id} runs: step " in shell.run("why", run.run_id)
    assert "stops after a checkpoint" in shell.run("cancel", run.run_id)
    finish(process, code=75)
    assert [a.id for a in run.all_attempts()] == ["local-1"]
    assert outcome(run).verdict == "cancelled"


def test_a_half_finished_sweep_continues(whole: Shell, shell: Shell, old: Path) -> None:
    before = old_version.shell_of(old, shell)
    process = before.start("submit", "digits", *SHORT, *SEEDS)
    second = wait_for("the second point", lambda: _of_seed(shell, 1))
    wait_for("step 10", step_reached(second, 10))
    process.send_signal(signal.SIGINT)
    finish(process, code=75)

    first = _of_seed(shell, 0)
    assert first is not None
    ended = outcome(first)
    assert "2 points: 1 completed, 1 cancelled" in shell.run("status", "digits.sweep")
    printed = shell.run("submit", "digits", *SHORT, *SEEDS)
    assert "1 done" in printed
    assert "digits.sweep: 2 points: 2 completed" in shell.run("status", "digits.sweep")
    assert outcome(first) == ended
    assert len(second.all_attempts()) == 2
    same_as(first, whole.only_run())
    assert (shell.runs / "digits.sweep/report.html").exists()


def _of_seed(shell: Shell, seed: int) -> RunDir | None:
    """The run of that seed once it has a row of metrics."""
    for path in shell.runs.glob("*/config.json"):
        run = RunDir(path.parent)
        config = read_json(run.config)
        if config["train"].get("seed", 0) == seed and read_jsonl(run.metrics):
            return run
    return None


def test_a_task_of_the_earlier_version_reads_a_searchs_new_request(
    old: Path, tmp_path: Path
) -> None:
    """A newer submit writes it while the earlier one's tasks wait in the queue."""
    sweep = SweepDir(tmp_path / "runs/digits.sweep")
    sweep.path.mkdir(parents=True)
    where = folders.Folders(tmp_path / "data", tmp_path / "cache", tmp_path / "runs")
    used = Site.model_validate({"backend": "slurm", "trusted": ["vision"]})
    asked = request.Request(load.find("digits", PROJECT), PROJECT, used, where, "slurm")
    loaded, machine = request.load(asked)
    template = request.resolve(asked, loaded.specs[0], machine)
    trial.leave_request(sweep, template, snapshot.look(PROJECT))

    code = (
        "import sys; from launch.trial import read_request, SweepDir, Path; r, c ="
        " read_request(SweepDir(Path(sys.argv[1])));"
    )
    code += " print(r.backend, len(c.files), c.sha256)"
    argv = [sys.executable, "-P", "-c", code, str(sweep.path)]
    read = subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": str(old)}, capture_output=True, text=True, check=True
    )
    own = snapshot.look(PROJECT)
    assert read.stdout == f"slurm {len(own.files)} {own.sha256}\n"
    assert trial.read_request(sweep)[1].contents == own.contents
