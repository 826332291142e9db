"""What a container engine refuses, in its own words; and what a killed attempt left there, which
goes before the next start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import engine
from tests.cli import PROJECT
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import Outcome

CONFLICT = (
    'docker: Error response from daemon: Conflict. The container name "/x-00000000" is already in'
    ' use by container "4f1c". You have to remove (or rename) that container to be able to reuse'
    " that name."
)
SHM = 'invalid argument "2x" for "--shm-size" flag: invalid size: \'2x\''
# Keeps what it was asked in a file; $FOLDER/containers has what `inspect` shows; `run` prints
# $FOLDER/printed and refuses.
FAKE = """
echo "$@" >> $FOLDER/asked
case $1 in
  ps) cat $FOLDER/ids 2>/dev/null;;
  inspect) cat $FOLDER/containers;;
  run) cat $FOLDER/printed >&2; exit $(cat $FOLDER/status);;
esac
"""


def start(folder: Path, printed: str, status: int = 125) -> tuple[Outcome | None, RunDir]:
    """One attempt of a docker run, with a fake engine."""
    tools, run = folder / "bin", RunDir(folder / "runs" / "x-00000000")
    tools.mkdir(parents=True, exist_ok=True)
    (tools / "docker").write_text(f"#!/bin/sh\n{FAKE}")
    (tools / "docker").chmod(0o755)
    (folder / "printed").write_text(printed)
    (folder / "status").write_text(str(status))
    argv = ["docker", "run", "--rm", f"--name={run.run_id}", "image"]
    write_json(
        run.plan, {"backend": "docker", "argv": argv, "env": {}, "nodes": 1, "nproc_per_node": 1}
    )
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "FOLDER": str(folder)}
    command = [
        sys.executable,
        "-P",
        "-m",
        "launch.node",
        str(run.path),
        "--attempt",
        f"docker-{len(run.all_attempts()) + 1}",
    ]
    environment["PYTHONPATH"] = str(PROJECT)
    subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, timeout=60, check=False
    )
    return Outcome.read(run.outcome), run


@pytest.mark.parametrize(
    ("printed", "line", "to_try"),
    [
        (
            f"{CONFLICT}\nSee 'docker run --help'.\n",
            CONFLICT,
            "`docker ps --all --filter name=x-00000000` shows the other",
        ),
        (f"{SHM}\nSee 'docker run --help'.\n", SHM, "docker.shm_size in the site file"),
        (
            (
                f"{SHM}\n\nUsage:  docker run [OPTIONS] IMAGE [COMMAND] [ARG...]\n\nRun 'docker run"
                " --help' for more information\n"
            ),
            SHM,
            "docker.shm_size in the site file",
        ),
        (
            (
                "Unable to find image 'none:1' locally\ndocker: Error response from daemon: pull"
                " access denied for none.\nSee 'docker run --help'.\n"
            ),
            "docker: Error response from daemon: pull access denied for none.",
            "`make image` builds ours",
        ),
        (
            (
                'docker: Error response from daemon: could not select device driver "" with'
                " capabilities: [[gpu]].\n"
            ),
            (
                'docker: Error response from daemon: could not select device driver "" with'
                " capabilities: [[gpu]]."
            ),
            "NVIDIA toolkit",
        ),
        ("", "it printed nothing", "docker.* of the site file"),
    ],
)
def test_what_the_engine_refuses(printed: str, line: str, to_try: str) -> None:
    said = engine.refusal(printed)
    assert said == ("" if line == "it printed nothing" else line)
    assert to_try in engine.hint(said, "docker", "x-00000000")


def test_a_refusal_is_the_verdicts_cause(tmp_path: Path) -> None:
    outcome, _ = start(tmp_path, f"{CONFLICT}\nSee 'docker run --help'.\n")
    assert outcome is not None
    assert (outcome.status, outcome.verdict) == ("failed", "infrastructure")
    assert outcome.cause == f"docker started no container (exit status 125): {CONFLICT}"


def test_another_status_is_the_commands_own(tmp_path: Path) -> None:
    outcome, _ = start(tmp_path, "torchrun said something\n", status=1)
    assert (
        outcome is not None
        and outcome.cause == "no rank left a word (exit status 1): torchrun said something"
    )


def test_leftovers_of_this_run_directory_go_before_a_start(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x-00000000"
    containers = [
        {"Id": "mine", "Mounts": [{"Type": "bind", "Source": str(run)}]},
        {"Id": "anothers", "Mounts": [{"Type": "bind", "Source": "/home/other/runs/x-00000000"}]},
    ]
    (tmp_path / "ids").write_text("mine\nanothers\n")
    (tmp_path / "containers").write_text(json.dumps(containers))
    start(tmp_path, "")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[:2] == [
        "ps --all --quiet --no-trunc --filter=label=batchyard.run=x-00000000",
        "inspect mine anothers",
    ]
    assert asked[2:] == [
        "stop --time=45 mine",
        "rm --force mine",
        "run --rm --name=x-00000000 image",
    ]


def test_a_living_runs_container_is_left_alone(tmp_path: Path) -> None:
    _, run = start(tmp_path, "")
    (tmp_path / "asked").unlink()
    lock = Lock(run.lock)
    assert lock.acquire(attempt="docker-1")
    try:
        start(tmp_path, "")
    finally:
        lock.release()
    assert not (tmp_path / "asked").exists()
