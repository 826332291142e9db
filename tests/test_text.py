"""Foreign text on a terminal: its control characters are shown, and no markup of it is interpreted,
wherever it is printed.
"""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from launch.console import table
from launch.text import plain
from tests.cli import BATCHYARD, PROJECT, Shell
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

TITLE = "\x1b]0;X\a"  # sets a terminal's title
HOSTILE = f"{TITLE}\x1b[31mred\x1b[8m\u202egpj.exe\x9b2J[bold]not[/bold]\r\x7f"
JOB = r"""
description: "\e]0;X\a\u202e[bold]d[/bold]"
train:
  epochs: 1
  global_batch_size: 8
  data: {name: digits}
  model: {name: mlp, hidden: [4]}
  optimizer: {name: sgd, lr: 0.1}
  schedule: {name: constant}
"""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a plain text, café, 日本語", "a plain text, café, 日本語"),
        (TITLE, "\\x1b]0;X\\x07"),
        ("a\u202eb", "a\\u202eb"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\x9b2J\x7f", "\\u009b2J\\u007f"),
        ("\udcff", "\\udcff"),
        ("\u2028", "\\u2028"),
        (Path("/a\x1b"), "/a\\x1b"),
    ],
)
def test_what_is_shown(text: object, shown: str) -> None:
    assert plain(text) == shown
    assert shown.encode()  # also on a terminal that takes UTF-8 alone


def test_ours_keeps_its_lines() -> None:
    assert plain("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


def test_a_tables_columns_stay_straight() -> None:
    head, first, second = table.lines(
        ("run", "where"), [(HOSTILE, "x"), ("short", (f"a\n{TITLE}", "red"))], left=("run", "where")
    )
    assert head.index("where") == first.index("x", len(plain(HOSTILE)))
    assert "\\n\\x1b]0;X\\x07" in second and "\n" not in first + second


def hostile_run(runs: Path) -> RunDir:
    run = RunDir(runs / "digits-00000001")
    write_json(run.config, {"job": "digits", "train": {}})
    attempt = run.attempt("local-1")
    write_json(attempt.record, {"started": 1e9, "ended": 1e9 + 9, "host": HOSTILE})
    end = Outcome(
        "failed",
        "user_error",
        attempt.id,
        "trainer rank 0",
        3,
        0,
        f"ValueError: {HOSTILE}",
        f"look at {HOSTILE}",
    )
    end.write(attempt.outcome)
    attempt.rank_log(0).write_bytes(f"step 1\n{HOSTILE}\n".encode() + b"\xff\n")
    return run


def of_terminal(shell: Shell, *argv: str) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*BATCHYARD, argv[0], "--runs-dir", str(shell.runs), *argv[1:]],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(PROJECT)},
    )
    os.close(theirs)
    printed = b""
    try:
        while part := os.read(ours, 65536):
            printed += part
    except OSError:  # Linux' way to say that the other end is closed
        pass
    process.wait(timeout=60)
    os.close(ours)
    return printed


@pytest.mark.parametrize("verb", ["status", "why", "logs"])
def test_of_a_run_nothing_is_run(tmp_path: Path, verb: str) -> None:
    run = hostile_run(tmp_path)
    printed = of_terminal(Shell(tmp_path), verb, run.run_id)
    assert b"\\x1b]0;X\\x07" in printed and b"[bold]not[/bold]" in printed
    for command in (
        b"\x1b]0",
        b"\x1b[31mred",
        b"\x1b[8m",
        b"\a",
        "\u202e".encode(),
        "\x9b".encode(),
    ):
        assert command not in printed


def test_a_pipe_has_the_logs_bytes(tmp_path: Path) -> None:
    run = hostile_run(tmp_path)
    argv = [*BATCHYARD, "logs", "--runs-dir", str(tmp_path), run.run_id]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    found = subprocess.run(
        argv,
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    assert found.stdout == run.attempt("local-1").rank_log(0).read_bytes()


def test_of_a_job_nothing_is_run(tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "jobs").mkdir(parents=True)
    (project / "trainer").mkdir()
    (project / "jobs" / "a.yaml").write_text(JOB)
    (project / "jobs" / "b.yaml").write_text(JOB.replace("epochs: 1", r'"\e]0;X\a\nepochs": 1'))
    shell = Shell(tmp_path / "runs", cwd=project)
    listed = shell.run("list")
    assert "a  \\x1b]0;X\\x07\\u202e[bold]d[/bold]" in listed
    wrong = shell.run("check", code=2)
    assert "train.\\x1b]0;X\\x07\\nepochs: unknown key" in wrong
    for printed in (listed, wrong, shell.run("show", "a")):
        assert "\x1b" not in printed and "\a" not in printed and "\u202e" not in printed


@pytest.mark.parametrize(
    "argv", [["\x1b[31mverb"], ["status", "--\x1b[31mx"], ["logs", "x", "--rank", "\x1b[31m1"]]
)
def test_of_what_is_typed_wrong_nothing_is_run(tmp_path: Path, argv: list[str]) -> None:
    done = subprocess.run(
        [*BATCHYARD, *argv],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert b"\\x1b[31m" in done.stderr and b"\x1b" not in done.stderr
