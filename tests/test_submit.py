"""submit on this machine, from the job file to the outcome: done, stopped, killed, continued; each
typed as a person would.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import (
    BATCHYARD,
    ONE_RANK,
    PROJECT,
    SHORT,
    Shell,
    finish,
    outcome,
    processes_of,
    step_reached,
    wait_for,
)
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shell(tmp_path: Path, cache: str) -> Shell:
    return Shell(tmp_path / "runs", env=(("XDG_CACHE_HOME", cache),))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: str) -> tuple[RunDir, str]:
    """SHORT digits, never stopped, and what submit printed."""
    shell = Shell(tmp_path_factory.mktemp("whole"), env=(("XDG_CACHE_HOME", cache),))
    printed = shell.run("submit", "digits", *SHORT)
    return shell.only_run(), printed


def refusing(folder: Path, name: str, script: str) -> Path:
    """A program of that name, which refuses."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("why", "told"),
    [
        ("python", "has no numpy, which trainer.tools.prepare needs"),
        ("data", "there is no folder"),
        ("weights", "there is no file"),
        ("sbatch", "invalid partition specified: nope"),
        ("image", "no image"),
    ],
)
def test_a_first_submit_that_is_refused_leaves_no_run(
    shell: Shell, tmp_path: Path, why: str, told: str
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        f"python: {refusing(tmp_path, 'python-without-numpy', 'exit 1')}\n"
        if why == "python"
        else "{}\n"
    )
    refusing(
        tmp_path, "sbatch", "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1"
    )
    refusing(tmp_path, "docker", "echo 'Error: No such image' >&2; exit 1")
    for name in ("squeue", "scontrol"):
        refusing(tmp_path, name, "exit 0")
    settings = {
        "data": ["--set", "train.data={name: imagefolder, folder: none, size: 8}"],
        "weights": ["--set", f"train.weights={{file: none.pt, sha256: '{'0' * 64}'}}"],
        "sbatch": ["--backend", "slurm"],
        "image": ["--backend", "docker"],
    }.get(why, [])
    shell = Shell(shell.runs, env=(*shell.env, ("PATH", f"{tmp_path}:{os.environ['PATH']}")))
    code = 1 if why in ("sbatch", "image") else 2
    printed = shell.run(
        "submit", "digits", "--site", str(site), "--data-dir", str(tmp_path), *settings, code=code
    )
    assert told in printed and not list(shell.runs.iterdir())
    assert "no runs in" in shell.run("status")


def test_points_of_an_array_that_is_refused_leave_no_run(shell: Shell, tmp_path: Path) -> None:
    """The second of two arrays is refused: the points of the first are in the queue, and stay."""
    job = tmp_path / "refused.yaml"
    job.write_text(f"extends: {PROJECT}/jobs/digits\nsweep: {{grid: {{train.seed: [1, 2]}}}}\n")
    count = f"n=$(cat {tmp_path}/count 2>/dev/null || echo 0)"
    refuse = "echo 'sbatch: error: invalid partition specified: nope' >&2; exit 1"
    refusing(tmp_path, "sbatch", refuse)
    refusing(tmp_path, "scontrol", "echo 'MaxArraySize = 1'")
    refusing(tmp_path, "squeue", "exit 0")
    shell = Shell(shell.runs, env=(*shell.env, ("PATH", f"{tmp_path}:{os.environ['PATH']}")))

    printed = shell.run("submit", str(job), "--backend", "slurm", code=1)
    assert "invalid partition specified: nope" in printed
    assert [path.name for path in shell.runs.iterdir()] == ["refused.sweep"]
    assert "no runs in" in shell.run("status")

    refusing(
        tmp_path, "sbatch", f"{count}; echo 7 > {tmp_path}/count; [ $n = 0 ] || exit 1; echo 7"
    )
    shell.run("submit", str(job), "--backend", "slurm", code=1)
    left = shell.only_run()
    assert read_json(left.config)["train"]["seed"] == 1


def test_a_command_without_a_verb_is_refused_with_the_list_of_verbs(tmp_path: Path) -> None:
    done = subprocess.run([*BATCHYARD], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "") and "run a job, or continue it" in done.stderr


def wait_for_run(shell: Shell, process: subprocess.Popen[str]) -> RunDir:
    wait_for(
        "a run directory",
        lambda: process.poll() is not None or list(shell.runs.glob("*/config.json")),
    )
    return shell.only_run()


def copy_of_the_project(folder: Path) -> Path:
    for name in ("jobs", "launch", "trainer"):
        shutil.copytree(
            PROJECT / name, folder / "project" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder / "project"


def same_as(run: RunDir, whole: RunDir) -> None:
    assert outcome(run).weights_sha256 == outcome(whole).weights_sha256
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_a_job_runs_to_its_result_and_a_second_submit_shows_it(
    undisturbed: tuple[RunDir, str], cache: str
) -> None:
    run, printed = undisturbed
    assert "completed: test accuracy" in printed and str(run.report) in printed
    end = outcome(run)
    assert (end.status, end.verdict, end.global_step, end.attempt) == (
        "completed",
        "completed",
        8 * 23,
        "local-1",
    )
    assert end.test_accuracy and end.test_accuracy > 0.9
    assert f"{100 * end.test_accuracy:.2f}" in run.report.read_text()

    shell = Shell(run.path.parent, env=(("XDG_CACHE_HOME", cache),))
    assert f"{run.run_id} is done: completed: test accuracy" in shell.run(
        "submit", "digits", *SHORT
    )
    assert [a.id for a in run.all_attempts()] == ["local-1"]
    assert "completed" in shell.run("status") and "local-1" in shell.run("status", "digits")
    assert "step 184/184" in shell.run("logs", "digits")
    assert "does not run, nothing to cancel: it is completed" in shell.run(
        "cancel", "digits", code=2
    )
    assert str(run.report) in shell.run("report", run.run_id[:9])


def test_the_frozen_code_is_what_runs(
    shell: Shell, tmp_path: Path, undisturbed: tuple[RunDir, str]
) -> None:
    project = copy_of_the_project(tmp_path)
    (project / ".gitignore").write_text("ignored.txt\n")
    (project / "ignored.txt").write_text("a secret")
    # each hides what we or Python need
    for name in ("random", "types", "queue", "json", "torch", "yaml", "sitecustomize"):
        (project / f"{name}.py").write_text(
            "raise SystemExit('a file of the project hides a module')\n"
        )
    subprocess.run(["git", "init", "-q", str(project)], check=True)
    here = Shell(shell.runs, cwd=project, env=shell.env)
    process = here.start("submit", "digits", *SHORT)
    run = wait_for_run(here, process)
    wait_for(
        "the attempt's start",
        lambda: process.poll() is not None or list(run.attempts.glob("*/attempt.json")),
    )
    for name in ("train.py", "models/resnet.py", "__main__.py", "batches/batches.py"):
        (project / "trainer" / name).write_text("raise SystemExit('the tree was edited')\n")
    finish(process, code=0)
    same_as(run, undisturbed[0])
    record = read_json(run.code_record)
    assert read_json(run.all_attempts()[0].record)["code_sha256"] == record["sha256"]
    assert record["commit"] is None and record["dirty"] and record["versions"]["torch"]
    assert (run.code / "jobs/digits.yaml").exists() and not (run.code / "ignored.txt").exists()
    assert sorted(path.name for path in run.packages.iterdir()) == ["launch", "trainer"]
    assert not (run.code / "trainer/train.py").stat().st_mode & 0o222
    assert "finished with other code than yours" in here.run("submit", "digits", *SHORT)
    assert "tensors" in here.run("export", "digits")


def test_what_is_asked_of_the_project_is_not_hidden_by_its_files(
    shell: Shell, tmp_path: Path
) -> None:
    project = copy_of_the_project(tmp_path)
    for name in ("random", "queue", "json"):
        (project / f"{name}.py").write_text(
            "raise SystemExit('a file of the project hides a module')\n"
        )
    (project / "optuna").mkdir()  # a folder of results, of which Python would make a package
    assert "digits: model: resnet" in Shell(shell.runs, cwd=project, env=shell.env).run(
        "check", "digits", "--deep"
    )
    as_module = [sys.executable, "-m", "launch", "list"]
    assert (
        "digits"
        in subprocess.run(as_module, cwd=project, capture_output=True, text=True, check=True).stdout
    )


def test_ctrl_c_stops_after_a_checkpoint_and_the_next_submit_continues(
    shell: Shell, undisturbed: tuple[RunDir, str]
) -> None:
    process = shell.start("submit", "digits", *SHORT)
    run = wait_for_run(shell, process)
    wait_for("step 10", step_reached(run, 10))
    process.send_signal(signal.SIGINT)
    printed = finish(process, code=75)
    assert "stopping after a checkpoint" in printed and "stopped (cancelled)" in printed
    assert f"batchyard submit {run.run_id} continues it" in printed
    stopped = outcome(run)
    assert (stopped.status, stopped.verdict) == ("stopped", "cancelled")
    assert stopped.global_step and 10 <= stopped.global_step < 184
    assert (run.checkpoints / "latest").resolve().name == f"step-{stopped.global_step}.local-1"
    assert not processes_of(run)
    assert "cancelled" in shell.run("status")

    # as older versions have frozen it: all of the code is on the path
    shutil.rmtree(run.packages)
    printed = shell.run("submit", run.run_id)
    assert read_json(run.plan)["env"]["PYTHONPATH"] == str(run.code)
    assert (
        "continues; it was cancelled" in printed
        and f"continued from step-{stopped.global_step}.local-1" in printed
    )
    assert not run.cancel.exists()
    same_as(run, undisturbed[0])


def test_cancel_now_ends_a_run_at_once(shell: Shell) -> None:
    front = shell.start(
        "submit",
        "digits",
        *SHORT,
        *ONE_RANK,
        "--set",
        "train.epochs=80",
        "--set",
        "execution.checkpoint_every_steps=10",
    )
    wait_for(
        "step 20",
        lambda: list(shell.runs.glob("*/config.json")) and step_reached(shell.only_run(), 20)(),
    )
    run = shell.only_run()
    assert (
        f"{run.run_id} (local-1 on " in (printed := shell.run("cancel", "digits", "--now"))
        and ") is ended" in printed
    )
    assert "cancelled by a person, before a new checkpoint" in finish(front, code=75)
    wait_for("the end of all processes", lambda: not processes_of(run))
    assert outcome(run).verdict == "cancelled" and "cancelled" in shell.run("status", "digits")
    assert "--prune is for a job with a sweep; digits has none" in shell.run(
        "submit", "digits", "--prune", code=2
    )


@pytest.mark.long
def test_cancel_from_another_shell_and_two_submits_at_once(
    shell: Shell, undisturbed: tuple[RunDir, str]
) -> None:
    first, second = shell.start("submit", "digits", *SHORT), shell.start("submit", "digits", *SHORT)
    run = wait_for_run(shell, first)
    wait_for(
        "one of them to stand back", lambda: first.poll() is not None or second.poll() is not None
    )
    back, front = (first, second) if first.poll() is not None else (second, first)
    assert "is running: local-1 on" in finish(back, code=0)
    wait_for("step 5", step_reached(run, 5))
    assert "running" in shell.run("status", run.run_id)
    assert "stops after a checkpoint" in shell.run("cancel", "digits")
    assert "stopped (cancelled)" in finish(front, code=75)
    assert [a.id for a in run.all_attempts()] == ["local-1"]
    shell.run("submit", "digits", *SHORT)
    same_as(run, undisturbed[0])


@pytest.mark.long
def test_a_killed_launcher_leaves_a_checkpoint_and_no_process(
    shell: Shell, undisturbed: tuple[RunDir, str]
) -> None:
    process = shell.start("submit", "digits", *SHORT)
    run = wait_for_run(shell, process)
    wait_for("step 5", step_reached(run, 5))
    process.kill()
    process.communicate()
    wait_for("the end of its processes", lambda: not processes_of(run))
    stopped = outcome(run)
    assert (stopped.status, stopped.verdict) == ("stopped", "preempted")
    assert "continued from" in shell.run("submit", "digits", *SHORT)
    same_as(run, undisturbed[0])


@pytest.mark.parametrize("victim", ["torch.distributed.run", "-m trainer"])
@pytest.mark.long
def test_a_killed_process_takes_the_others_along_and_loses_nothing(
    shell: Shell, undisturbed: tuple[RunDir, str], victim: str
) -> None:
    rank = None
    process = shell.start("submit", "digits", *SHORT, "--set", "execution.checkpoint_every_steps=5")
    run = wait_for_run(shell, process)
    wait_for("step 10", step_reached(run, 10))
    if victim == "-m trainer":  # torchrun's own line holds these words too
        line = next(
            p for p in processes_of(run) if "torch.distributed.run" not in p and "-m trainer" in p
        )
        environment = Path(f"/proc/{line.split()[0]}/environ").read_text().split("\0")
        rank = next(int(word[5:]) for word in environment if word.startswith("RANK="))
    else:
        line = next(p for p in processes_of(run) if victim in p)
    os.kill(int(line.split()[0]), signal.SIGKILL)
    printed = finish(process, code=1)
    wait_for("the end of its processes", lambda: not processes_of(run))
    failed = outcome(run)
    assert (failed.status, failed.verdict, failed.rank) == ("failed", "killed", rank), printed
    assert failed.global_step and failed.global_step >= 10 and "SIGKILL" in (failed.cause or "")
    shell.run("submit", "digits", *SHORT)
    same_as(run, undisturbed[0])


@pytest.mark.long
def test_a_run_without_a_word_is_dead_and_its_lock_is_stale(
    shell: Shell, undisturbed: tuple[RunDir, str]
) -> None:
    process = shell.start("submit", "digits", *SHORT, "--set", "execution.checkpoint_every_steps=5")
    run = wait_for_run(shell, process)
    wait_for("step 10", step_reached(run, 10))
    for line in processes_of(run):  # a power cut, as far as this machine can make one
        os.kill(int(line.split()[0]), signal.SIGKILL)
    process.kill()
    process.communicate()
    wait_for("the end of its processes", lambda: not processes_of(run))
    assert run.lock.exists() and "dead" in shell.run("status", "digits")
    # a stale pid is never killed: the lock's pid now belongs to somebody else, this very process
    write_json(run.lock, {**read_json(run.lock), "pid": os.getpid()})
    assert "does not run, nothing to cancel: it is dead" in shell.run("cancel", "digits", code=2)
    shell.run("submit", "digits", *SHORT)
    left = Outcome.read(run.attempt("local-1").outcome)
    assert left and (left.status, left.verdict, left.written_by) == (
        "failed",
        "killed",
        "launch.node",
    )
    same_as(run, undisturbed[0])


def test_nan_ends_the_run_and_no_checkpoint_holds_it(shell: Shell) -> None:
    nan = ("--set", "train.optimizer.lr=1e30")
    printed = shell.run("submit", "digits", *SHORT, *ONE_RANK, *nan, code=1)
    run = shell.only_run()
    failed = outcome(run)
    assert (failed.status, failed.verdict) == ("failed", "nan")
    assert failed.global_step and failed.global_step < 10 and "is not finite" in printed
    assert not list(run.checkpoints.glob("*"))


def test_an_exception_in_the_trainer_names_the_rank_and_the_log(
    shell: Shell, tmp_path: Path
) -> None:
    project = copy_of_the_project(tmp_path)
    model = project / "trainer/models/resnet.py"
    sound = model.read_text()
    bug = "        if x.shape[0] == 29:  # the last batch of an epoch\n"
    bug += "            raise RuntimeError('a bug in the model')\n"
    broken = sound.replace(
        "        scores: Tensor = self.fc", f"{bug}        scores: Tensor = self.fc"
    )
    assert broken != sound
    model.write_text(broken)
    here = Shell(shell.runs, cwd=project, env=shell.env)
    printed = here.run("submit", "digits", *SHORT, code=1)
    failed = outcome(here.only_run())
    assert (failed.status, failed.verdict) == ("failed", "user_error"), printed
    assert failed.cause == "RuntimeError: a bug in the model" and failed.rank in (0, 1)
    assert f"rank-{failed.rank}.log" in (failed.hint or "")
    assert "a bug in the model" in here.run("logs", "digits", "--rank", str(failed.rank))


def test_strict_resources_refuses_what_is_not_there(shell: Shell) -> None:
    printed = shell.run(
        "submit", "digits", "--set", "resources.gpus_per_node=64", "--strict-resources", code=2
    )
    assert "--strict-resources: the job asks for 64 GPU(s), this machine has" in printed
    assert not list(shell.runs.glob("*/config.json"))


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["show", "digits"], ["check", "digits"], ["status"]]
)
def test_quick_verbs_load_nothing_heavy(shell: Shell, words: list[str]) -> None:
    heavy = "('torch', 'wandb', 'submitit', 'numpy', 'sklearn', 'torchvision')"
    code = (
        "import sys; from launch.cli import cli\ntry: cli(sys.argv[1:],"
        f" standalone_mode=False)\nfinally:\n print([m for m in {heavy} if m in sys.modules],"
        " file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr.splitlines()[-1] == "[]"


def test_show_says_what_submit_writes(shell: Shell, undisturbed: tuple[RunDir, str]) -> None:
    run, _ = undisturbed
    shown = Shell(run.path.parent, env=shell.env).run("show", "digits", *SHORT)
    plan = json.loads(run.plan.read_text())
    assert all(argument in shown for argument in plan["argv"])
    assert run.run_id in shown
