"""digits in the image, two ranks: its result, whose files it leaves, and that stopping it loses
nothing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import SHORT, Shell, finish, outcome, step_reached, wait_for
from tests.docker.engine import Engine
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir

pytestmark = pytest.mark.docker
IN_DOCKER = (*SHORT, "--backend", "docker")


@pytest.fixture(scope="module")
def environment(
    engine: Engine, image: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, str], ...]:
    return (
        ("DOCKER_HOST", engine.env["DOCKER_HOST"]),
        ("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache"))),
    )


@pytest.fixture
def shell(tmp_path: Path, environment: tuple[tuple[str, str], ...]) -> Shell:
    return Shell(tmp_path / "runs", env=environment)


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, environment: tuple[tuple[str, str], ...]
) -> RunDir:
    shell = Shell(tmp_path_factory.mktemp("whole"), env=environment)
    shell.run("submit", "digits", *IN_DOCKER)
    return shell.only_run()


def same_as(run: RunDir, whole: RunDir) -> None:
    assert outcome(run).weights_sha256 == outcome(whole).weights_sha256
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def containers(engine: Engine, run: RunDir) -> str:
    listing = ["docker", "ps", "-aq", "--filter", f"label=batchyard.run={run.run_id}"]
    return subprocess.run(
        listing, env={**os.environ, **engine.env}, capture_output=True, text=True, check=True
    ).stdout.strip()


def started(shell: Shell) -> tuple[subprocess.Popen[str], RunDir]:
    process = shell.start("submit", "digits", *IN_DOCKER)
    wait_for(
        "a run directory",
        lambda: process.poll() is not None or list(shell.runs.glob("*/config.json")),
    )
    return process, shell.only_run()


def test_it_trains_in_the_image_and_leaves_nothing_behind(engine: Engine, whole: RunDir) -> None:
    assert (outcome(whole).status, outcome(whole).attempt) == ("completed", "docker-1")
    assert outcome(whole).test_accuracy > 0.9  # type: ignore[operator]
    assert read_json(whole.code_record)["image"].startswith("batchyard:cpu sha256:")
    assert not containers(engine, whole)


def test_ctrl_c_stops_after_a_checkpoint_and_the_next_submit_continues(
    engine: Engine, shell: Shell, whole: RunDir
) -> None:
    process, run = started(shell)
    wait_for("step 10", step_reached(run, 10))
    process.send_signal(signal.SIGINT)
    assert "stopped (cancelled)" in finish(process, code=75)
    assert outcome(run).global_step < 184  # type: ignore[operator]
    assert not containers(engine, run)
    assert "continued from step-" in shell.run("submit", "digits", *IN_DOCKER)
    assert [a.id for a in run.all_attempts()] == ["docker-1", "docker-2"]
    same_as(run, whole)


def test_cancel_from_another_shell(engine: Engine, shell: Shell, whole: RunDir) -> None:
    process, run = started(shell)
    wait_for("step 5", step_reached(run, 5))
    assert "stops after a checkpoint" in shell.run("cancel", "digits")
    assert "stopped (cancelled)" in finish(process, code=75)
    shell.run("submit", "digits", *IN_DOCKER)
    same_as(run, whole)


@pytest.mark.parametrize("victim", ["launcher", "docker client"])
def test_a_killed_launcher_or_client_leaves_no_container_and_loses_nothing(
    engine: Engine, shell: Shell, whole: RunDir, victim: str
) -> None:
    process, run = started(shell)
    wait_for("step 5", step_reached(run, 5))
    if victim == "launcher":
        process.kill()
    else:
        listing = subprocess.run(
            ["pgrep", "-f", f"^docker run .*--name={run.run_id}"],
            capture_output=True,
            text=True,
            check=True,
        )
        os.kill(int(listing.stdout.split()[0]), signal.SIGKILL)
    process.communicate()
    wait_for("the end of the container", lambda: not containers(engine, run))
    assert (run.checkpoints / "latest").exists()
    shell.run("submit", "digits", *IN_DOCKER)
    same_as(run, whole)


def test_its_files_belong_to_the_user_of_the_plan(engine: Engine, shell: Shell) -> None:
    """The tests run as root, so the plan of an ordinary user is made by hand: `--user` is the
    caller's own.
    """
    shell.run("submit", "digits", *IN_DOCKER, "--set", "execution.stop_after_step=5", code=75)
    run, user = shell.only_run(), 12345
    plan = read_json(run.plan)
    own = f"--user={os.getuid()}:{os.getgid()}"
    plan["argv"][plan["argv"].index(own)] = f"--user={user}:{user}"
    write_json(run.plan, plan)
    write_json(
        run.config,
        {
            **(found := read_json(run.config)),
            "execution": {**found["execution"], "stop_after_step": None},
        },
    )
    attempt = run.attempt("docker-2")
    attempt.path.mkdir()
    subprocess.run(["chown", "-R", f"{user}:{user}", str(run.path)], check=True)
    node = [sys.executable, "-P", "-m", "launch.node", str(run.path), "--attempt", attempt.id]
    subprocess.run(
        node,
        env={**os.environ, **engine.env, "PYTHONPATH": str(run.code)},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    (checkpoint,) = run.checkpoints.glob("step-*.docker-2")
    for path in (
        checkpoint,
        checkpoint / "weights.pt",
        run.metrics,
        attempt.rank_log(0),
        attempt.rank_log(1),
        attempt.outcome,
    ):
        assert path.stat().st_uid == user, path


def test_a_missing_image_is_told_before_anything_starts(shell: Shell) -> None:
    printed = shell.run(
        "submit", "digits", *IN_DOCKER, "--set", "container.image=no-such-image:1", code=1
    )
    assert "the engine has no image 'no-such-image:1': make image CPU=1 builds it" in printed
