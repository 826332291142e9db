"""Who lost a lock while it slept stops, and writes nothing over what the next holder wrote."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from launch.node import scratch
from tests.cli import PROJECT, Shell, finish, wait_for
from trainer.config.files import lock
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome


def take_away(path: Path) -> dict[str, object]:
    """What another machine does once it has judged the holder of that lock dead."""
    elsewhere = {"host": "n2", "boot": "of another machine", "attempt": "slurm-8.0"}
    taken = {**lock.me(), **elsewhere, "nonce": "ab" * 8}
    write_json(path, taken)
    return taken


def test_a_node_that_lost_its_run_ends_the_command_before_it_writes_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "x-00000000")
    run.code.mkdir(parents=True)
    client = tmp_path / "docker"  # ends nothing itself when it is killed, as docker's own client
    waits = f"sleep 600 & echo $! > {tmp_path}/started; wait; wait"
    client.write_text(
        f'#!/bin/sh\n[ "$1" = kill ] && exec echo "$@" > {tmp_path}/asked\n'
        '[ "$1" = run ] || exit 0\n'
        f"trap 'echo TERM >> {tmp_path}/seen' TERM; {waits}\n"
    )
    client.chmod(0o755)
    plan = {"backend": "docker", "argv": [str(client), "run"], "env": {}, "nodes": 1}
    write_json(run.plan, {**plan, "nproc_per_node": 1})
    node = subprocess.Popen(
        [sys.executable, "-m", "launch.node", str(run.path), "--attempt", "local-1"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    started = tmp_path / "started"
    wait_for("the command", lambda: started.exists() and started.read_text().endswith("\n"))
    child = int(started.read_text())

    node.send_signal(signal.SIGSTOP)
    taken = take_away(run.lock)
    Outcome("completed", "completed", "slurm-8.0", "test").write(run.outcome)
    node.send_signal(signal.SIGCONT)

    printed = finish(node, code=75)
    assert "local-1 lost the run to another attempt" in printed and "on n2" in printed
    wait_for("the command's end", lambda: lock.start_ticks(child) is None)
    assert (tmp_path / "asked").read_text() == f"kill {run.run_id}\n"
    # a TERM would have made the trainer write a checkpoint
    assert not (tmp_path / "seen").exists()
    assert read_json(run.lock) == taken
    assert Outcome.read(run.outcome).attempt == "slurm-8.0"  # type: ignore[union-attr]
    own = Outcome.read(run.attempt("local-1").outcome)
    assert own is not None and (own.status, own.verdict) == ("stopped", "infrastructure")


def test_a_submit_that_lost_its_lock_starts_nothing(tmp_path: Path) -> None:
    prepare = tmp_path / "python"  # the site's: it prepares when it is told to
    waits = f"touch {tmp_path}/asked; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"
    case = f'case "$*" in *trainer.tools.prepare*) {waits};; esac'
    prepare.write_text(f'#!/bin/sh\n{case}\nexec {sys.executable} "$@"\n')
    prepare.chmod(0o755)
    (tmp_path / "site.yaml").write_text(f"python: {prepare}\n")
    shell = Shell(tmp_path / "runs", env=(("XDG_CACHE_HOME", str(tmp_path / "cache")),))
    submit = shell.start("submit", "digits", "--site", str(tmp_path / "site.yaml"))
    wait_for("its prepare", lambda: (tmp_path / "asked").exists() or submit.poll() is not None)

    run = shell.only_run()
    taken = take_away(run.submit_lock)
    (tmp_path / "go").touch()
    printed = finish(submit, code=1)
    last = printed.strip().splitlines()[-1]
    assert last.startswith(
        f"batchyard: {run.submit_lock} is now held by pid {os.getpid()} on n2 (slurm"
    )
    assert "Traceback" not in printed
    assert not run.attempts.exists() and read_json(run.submit_lock) == taken


def test_a_copy_to_scratch_that_lost_its_lock_leaves_the_others_alone(tmp_path: Path) -> None:
    prepared, content = tmp_path / "cache" / "set-1234", b"pictures"
    prepared.mkdir(parents=True)
    os.mkfifo(prepared / "images.npy")  # gives its content when the test writes it
    file = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(prepared / "manifest.json", {"files": {"images.npy": file}, "sha256": "ab" * 32})
    problems = list[str]()

    def copy() -> None:
        try:
            scratch.copy(prepared, tmp_path / "ssd")
        except scratch.NotCopied as problem:
            problems.append(str(problem))

    copying = threading.Thread(target=copy)
    copying.start()
    folder = tmp_path / "ssd" / f"batchyard-{os.getuid()}"
    (own,) = wait_for("the copy", lambda: folder.exists() and list(folder.glob(".set-1234-*.tmp")))
    (path,) = folder.glob(".set-1234-*.lock")
    taken = take_away(path)
    others = folder / f".set-1234-{'ab' * 4}.{'ab' * 8}.tmp"
    others.mkdir()
    (prepared / "images.npy").write_bytes(content)
    copying.join(60)

    assert len(problems) == 1 and "is now held by" in problems[0]
    assert others.exists() and not own.exists() and not (folder / f"set-1234-{'ab' * 4}").exists()
    assert read_json(path) == taken


def test_a_prepare_that_lost_its_lock_leaves_the_others_alone(tmp_path: Path) -> None:
    from tests.test_data import tool

    argv = tool(tmp_path, {"name": "synthetic", "samples": 60_000})
    process = subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    folder = tmp_path / "cache" / "prepared"
    left = ".synthetic-*.tmp"
    wait_for("its folder", lambda: process.poll() is not None or list(folder.glob(left)))
    process.send_signal(signal.SIGSTOP)
    (path,) = folder.glob(".synthetic-*.lock")
    taken = take_away(path)
    others = folder / f"{path.name.removesuffix('.lock')}.{'ab' * 8}.tmp"
    others.mkdir()
    process.send_signal(signal.SIGCONT)

    printed = finish(process, code=2)
    assert "is now held by" in printed and "submit again" in printed and "Traceback" not in printed
    assert sorted(folder.iterdir()) == sorted([path, others]) and read_json(path) == taken


@pytest.mark.parametrize("left", ["", ".1234567812345678"])
def test_what_a_killed_copy_left_is_removed_by_the_next(tmp_path: Path, left: str) -> None:
    prepared = tmp_path / "set-1234"
    prepared.mkdir()
    (prepared / "manifest.json").write_text(json.dumps({"files": {}, "sha256": "ab" * 32}))
    folder = tmp_path / "ssd" / f"batchyard-{os.getuid()}"
    (folder / f".set-1234-{'ab' * 4}{left}.tmp").mkdir(parents=True)
    whole = scratch.copy(prepared, tmp_path / "ssd")
    assert [p.name for p in folder.iterdir()] == [whole.name]
