"""What a person sees of a run: a progress bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from launch.console.follow import STEP, Follower, Tail
from tests.cli import BATCHYARD, ONE_RANK, PROJECT, SHORT
from trainer.config.files.layout import Attempt


def test_a_terminal_shows_a_bar_and_every_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = pty.openpty()
    argv = [*BATCHYARD, "submit", "--runs-dir", str(tmp_path / "runs"), "digits", *SHORT, *ONE_RANK]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        argv, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0, shown.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert re.search(r"training .*\b\d+/184 steps", text)
    assert "step 184/184" in text and "completed: test accuracy" in text


def test_a_pipe_gets_whole_lines_as_they_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = Attempt(tmp_path / "local-1")
    attempt.path.mkdir()
    with Follower(attempt) as follower:
        follower.show()  # no log yet
        attempt.rank_log(0).write_text("epoch 1/4  step 5/92  [red]loss[/red]\nhalf")
        follower.show()
        assert capsys.readouterr().out == "epoch 1/4  step 5/92  [red]loss[/red]\n"
        with attempt.rank_log(0).open("a") as log:
            log.write(" a line\n")
        follower.show()
        assert capsys.readouterr().out == "half a line\n"


def test_the_bar_reads_what_the_trainer_writes() -> None:
    source = (PROJECT / "trainer/state.py").read_text()
    joined = re.sub(r'"\s*\n\s*f"', "", source)  # one string over several lines
    assert "step {self.step}/{self.total_steps}" in joined
    found = STEP.search("epoch 2/4  step 25/92  loss 0.9")
    assert found and found.groups() == ("25", "92")


def test_a_tail_waits_for_its_file(tmp_path: Path) -> None:
    assert Tail(tmp_path / "none").lines() == []
