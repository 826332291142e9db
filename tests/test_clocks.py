"""Locks of other machines, judged on a machine whose clock is an hour ahead, or an hour behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli import ONE_RANK, PROJECT, SHORT, Shell
from trainer.config.files import lock
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir

HOUR = 3600.0


def with_clock(folder: Path, ahead_s: float) -> tuple[tuple[str, str], ...]:
    """The environment of a process whose clock is that much ahead of the file system's."""
    folder.mkdir(exist_ok=True)
    shift = f"import time\nreal = time.time\ntime.time = lambda: real() + {ahead_s}\n"
    (folder / "sitecustomize.py").write_text(shift)
    return (("PYTHONPATH", f"{folder}:{PROJECT}"), ("XDG_CACHE_HOME", str(folder)))


def leave_lock(run: RunDir, age_s: float) -> None:
    """The lock of an attempt on another machine, renewed so long ago by the file system's clock."""
    run.path.mkdir(parents=True, exist_ok=True)
    elsewhere = {"host": "n1", "boot": "of another machine", "attempt": "slurm-7.0"}
    write_json(run.lock, {**lock.me(), **elsewhere})
    then = time.time() - age_s
    os.utime(run.lock, (then, then))


def leave_attempt(run: RunDir, age_s: float) -> None:
    """A run of another machine, as far as those who read it need it."""
    leave_lock(run, age_s)
    write_json(run.config, {"run_id": run.run_id})
    write_json(run.attempt("slurm-7.0").record, {"attempt": "slurm-7.0", "host": "n1"})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Of digits, as SHORT makes it; its lock alone is there."""
    shown = Shell(tmp_path / "runs").run("show", "digits", *SHORT)
    found = re.search(r"digits-[0-9a-f]{8}", shown)
    assert found
    return RunDir(tmp_path / "runs" / found[0])


def test_a_clock_an_hour_ahead_takes_no_living_run(tmp_path: Path, run: RunDir) -> None:
    leave_lock(run, 0.0)
    shell = Shell(tmp_path / "runs", env=with_clock(tmp_path / "clock", HOUR))
    printed = shell.run("submit", "digits", *SHORT)
    assert f"{run.run_id} is running: slurm-7.0 on n1" in printed
    assert os.listdir(run.path) == ["lock.json"]


def test_a_clock_an_hour_behind_believes_no_dead_run(tmp_path: Path, run: RunDir) -> None:
    leave_lock(run, 600.0)
    shell = Shell(tmp_path / "runs", env=with_clock(tmp_path / "clock", -HOUR))
    stops = ("--set", "execution.stop_after_step=2")
    printed = shell.run("submit", "digits", *SHORT, *ONE_RANK, *stops, code=75)
    assert "stopped" in printed and not run.lock.exists()


def test_a_command_that_only_reads_writes_nothing_and_names_its_clock(
    tmp_path: Path, run: RunDir
) -> None:
    leave_attempt(run, 0.0)
    before = {path: path.stat().st_mtime_ns for path in (run.path, run.path.parent)}
    ahead = Shell(tmp_path / "runs", env=with_clock(tmp_path / "clock", HOUR))
    told = r"1 run; the oldest was renewed 1 h 0\d min ago by this machine's clock"
    for verb in (("status",), ("status", run.run_id), ("why", run.run_id)):
        assert re.search(told, ahead.run(*verb)), verb

    behind = Shell(tmp_path / "runs", env=with_clock(tmp_path / "clock", -HOUR))
    printed = behind.run("status")
    assert "running" in printed and re.search(
        r"renewed (59 min \d+ s|1 h 00 min) from now by this", printed
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("ahead_s", [HOUR, -HOUR])
def test_the_file_systems_clock_is_asked_once_for_all_runs(tmp_path: Path, ahead_s: float) -> None:
    runs = [RunDir(tmp_path / "runs" / f"x-0000000{n}") for n in range(4)]
    for number, run in enumerate(runs):
        leave_attempt(run, 600.0 if number % 2 else 0.0)
    code = (
        "import sys; from pathlib import Path; from launch.runs import find\n"
        "from launch.backends import standings\n"
        "written = []\n"
        "is_clock = lambda event, about: event == 'open' and '.clock.' in str(about[0])\n"
        "sys.addaudithook(lambda event, about: is_clock(event, about) and written.append(about))\n"
        "runs = find.all_runs(Path(sys.argv[1]))\n"
        "states = [[s.state for s in standings.standings(runs).values()] for _ in range(2)]\n"
        "print(states, len(written))\n"
    )
    environment = {**os.environ, **dict(with_clock(tmp_path / "clock", ahead_s))}
    argv = [sys.executable, "-c", code, str(tmp_path / "runs")]
    answer = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    states = ["running", "dead", "running", "dead"]
    assert answer.stdout.strip() == f"{[states, states]} 1"
    assert not list((tmp_path / "runs").glob(".clock.*"))


@pytest.mark.parametrize("ahead_s", [HOUR, -HOUR])
def test_a_lock_is_taken_by_the_file_systems_clock(tmp_path: Path, ahead_s: float) -> None:
    alive, dead = RunDir(tmp_path / "alive"), RunDir(tmp_path / "dead")
    leave_lock(alive, 60.0)
    leave_lock(dead, 600.0)
    code = (
        "import sys; from pathlib import Path; from trainer.config.files.lock import Lock\n"
        "print([Lock(Path(path)).acquire() for path in sys.argv[1:]])\n"
    )
    environment = {**os.environ, **dict(with_clock(tmp_path / "clock", ahead_s))}
    argv = [sys.executable, "-c", code, str(alive.lock), str(dead.lock)]
    answer = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[False, True]"
