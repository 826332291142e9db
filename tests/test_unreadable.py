"""One run's bad file: every verb that looks at many runs says so of that run, and shows the others.

None ends with a traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.runs import records
from tests.cli import BATCHYARD, PROJECT, Shell
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.outcome import Outcome

HUGE = "1" + 400 * "0"
# What may be in a file's place; a text that is not JSON first.
CONTENTS = {
    "half": '{"started": 1',
    "binary": "\x00\x01\x02",
    "number": "5",
    "huge": HUGE,
    "float": "1e300",
    "nan": "NaN",
    "true": "true",
    "null": "null",
    "text": '"x"',
    "list": "[1]",
    "lists": '[[{"a": 1}]]',
    "deep": 100_000 * "[",
    "control": '"\\u001b]0;X\\u0007"',
}
LOCK = {"host": "n9", "boot": "b", "pid": 1, "start": 2, "pidns": "p", "attempt": "local-1"}
# A file, the place of a value in it, and what is there.
PLACES: list[tuple[str, str, Any]] = [
    ("lock.json", "host", None),
    ("lock.json", "host", 5),
    ("attempts/local-1/attempt.json", "started", 1e300),
    ("attempts/local-1/attempt.json", "started", "x"),
    ("attempts/local-1/attempt.json", "ended", float("nan")),
    ("attempts/local-1/attempt.json", "world_size", 10**400),
    ("attempts/local-1/outcome.json", "status", []),
    ("attempts/local-1/outcome.json", "status", "odd"),
    ("attempts/local-1/outcome.json", "test_accuracy", "x"),
    ("attempts/local-1/outcome.json", "global_step", 10**400),
    ("attempts/local-1/outcome.json", "extra", 3),
    ("attempts/local-1/outcome.json", "verdict", None),
    ("config.json", "sweep", []),
    ("config.json", "train", 5),
    ("metrics.jsonl", "loss", "x"),
    ("metrics.jsonl", "global_step", []),
    ("timing.jsonl", "total_steps", {}),
    ("slurm/job.json", "job_id", None),
]
FILES = (
    "lock.json",
    "config.json",
    "attempts/local-1/attempt.json",
    "attempts/local-1/outcome.json",
    "metrics.jsonl",
    "timing.jsonl",
    "slurm/job.json",
)


def make(path: Path) -> RunDir:
    """A completed run, as far as the verbs look at it."""
    run = RunDir(path)
    train = {"epochs": 1, "global_batch_size": 64, "data": {"name": "digits"}}
    write_json(run.config, {"job": "digits", "run_id": run.run_id, "train": train}, sync=False)
    attempt = run.attempt("local-1")
    write_json(
        attempt.record,
        {"started": 1e9, "ended": 1e9 + 9, "host": "n1", "world_size": 1},
        sync=False,
    )
    outcome = Outcome("completed", "completed", attempt.id, "trainer rank 0", 6, test_accuracy=0.5)
    outcome.write(attempt.outcome)
    outcome.write(run.outcome)
    run.metrics.write_text('{"kind": "train", "global_step": 6, "loss": 0.5}\n')
    run.timing.write_text(
        '{"attempt": "local-1", "global_step": 6, "total_steps": 6, "step_time_s": 0.1}\n'
    )
    return run


def spoil(run: RunDir, name: str, content: str | None) -> None:
    """Puts something else into the place of one file; None: a folder."""
    file = run.path / name
    file.unlink(missing_ok=True)
    if name.endswith("outcome.json"):
        run.outcome.unlink(missing_ok=True)  # the page takes the copy
    file.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        file.mkdir()
    elif content.startswith("->"):
        file.symlink_to(content[2:])
    else:
        file.write_text(content + "\n")


def value_of(run: RunDir, name: str) -> dict[str, Any]:
    found = {"lock.json": LOCK, "slurm/job.json": {"job_id": "12"}}.get(name)
    return dict(found or json.loads((run.path / name).read_text()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is right, and many that each have one bad file; all are points of one
    sweep, too.
    """
    folder = tmp_path_factory.mktemp("runs")
    number = 0

    def new() -> RunDir:
        nonlocal number
        number += 1
        return make(folder / f"digits-{number:08x}")

    new()
    for name in FILES:
        for content in (*CONTENTS.values(), None, "->nowhere"):
            spoil(new(), name, content)
    for name, key, value in PLACES:
        run = new()
        spoil(run, name, json.dumps({**value_of(run, name), key: value}))
    points = [
        {"axes": {"train.seed": n}, "run_id": p.name}
        for n, p in enumerate(sorted(folder.iterdir()))
    ]
    submit = {
        "started": 1.0,
        "ended": 2.0,
        "backend": "local",
        "settings": [],
        "points": points,
        "pid": 1,
    }
    write_json(SweepDir(folder / "digits.sweep").record, {"job": "digits", "submits": [submit]})
    return folder


@pytest.fixture
def shell(runs: Path, tmp_path: Path) -> Shell:
    (tmp_path / "bin").mkdir()  # no squeue, of whatever cluster
    return Shell(runs, env=(("PATH", str(tmp_path / "bin")),))


def bad_ones(runs: Path) -> int:
    return len(list(runs.glob("digits-*"))) - 1


def test_status_shows_the_others(shell: Shell, runs: Path) -> None:
    table = shell.run("status").splitlines()[1:]
    assert len(table) == bad_ones(runs) + 1
    assert table[0].split()[:3] == ["digits-00000001", "completed", "6/6"]
    not_shown = [line for line in table[1:] if "unreadable" not in line]
    # a row that a killed writer left incomplete is none
    assert len(not_shown) <= len(FILES), not_shown
    assert "lock.json: found null; expected a text" not in "\n".join(not_shown)
    assert any(
        "attempts/local-1/attempt.json: started: found 1e+300; expected seconds since 1970" in line
        for line in table
    )
    assert any("lock.json: host: found 5; expected a text" in line for line in table)
    assert any("config.json: is a link to nowhere, which is not there" in line for line in table)


def test_status_of_a_sweep_and_its_report_show_the_others(shell: Shell, runs: Path) -> None:
    printed = shell.run("status", "digits.sweep")
    assert "   0  completed    6/6" in printed
    assert "is unreadable: attempts/local-1/outcome.json: Is a directory" in printed
    shell.run("report", "digits.sweep")
    page = SweepDir(runs / "digits.sweep").report.read_text()
    assert "unreadable: attempts/local-1/outcome.json: is not JSON" in page


def test_results_clean_and_cancel_name_them(shell: Shell) -> None:
    assert "is left out; unreadable: config.json: is not JSON" in shell.run("results", "digits")
    assert "is left as it is; unreadable: metrics.jsonl" not in shell.run("clean", "--dry-run")
    assert "cannot be cancelled; unreadable: slurm/job.json: job_id: found null" in shell.run(
        "cancel", "digits", code=1
    )


def test_why_of_each(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from launch.cli import cli

    for run in sorted(runs.glob("digits-*")):
        cli(["why", "--runs-dir", str(runs), run.name], standalone_mode=False)
        printed = capsys.readouterr().out
        assert f"{run.name} is unreadable: " in printed or f"{run.name} completed: " in printed
        assert "\x1b" not in printed


def test_submit_refuses_a_run_that_cannot_be_known(tmp_path: Path) -> None:
    shell = Shell(tmp_path / "runs")
    run_id = shell.run("show", "digits").split()[1]
    run = make(shell.runs / run_id)
    spoil(run, "config.json", "5")
    printed = shell.run("submit", "digits", code=1).strip()
    assert printed.endswith(f"batchyard: {run.config}: found 5; expected a mapping")


def test_an_empty_lock_is_what_a_power_cut_leaves(tmp_path: Path) -> None:
    run = make(tmp_path / "digits-00000001")
    run.lock.write_text("")
    assert not records.is_lock(run.lock)
    assert "completed" in Shell(tmp_path).run("status")


def test_what_may_not_be_read(tmp_path: Path) -> None:
    open_, locked, closed = (make(tmp_path / f"digits-0000000{n}") for n in (1, 2, 3))
    locked.attempt("local-1").outcome.chmod(0)
    closed.path.chmod(0)
    # root reads everything: where the tests are root's, somebody else looks
    code = (
        "import os, pathlib; from launch.console import status; from launch.runs import find\n"
        "os.getuid() or (os.setgroups([]), os.setgid(65534), os.setuid(65534))\n"
        "status.show(find.all_runs(pathlib.Path('.')))"
    )
    folder = tmp_path
    for parent in (folder, *folder.parents[:3]):
        if parent.name.startswith(("pytest-", "test_")):
            parent.chmod(0o755)
    printed = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    closed.path.chmod(0o755)
    shown = {line.split()[0]: line for line in printed[1:]}
    assert shown[open_.run_id].split()[1] == "completed"
    assert "attempts/local-1/outcome.json: Permission denied" in shown[locked.run_id]
    assert "unreadable" in shown[closed.run_id] and "Permission denied" in shown[closed.run_id]


def test_a_line_that_a_killed_writer_left_is_passed_over(tmp_path: Path) -> None:
    run = make(tmp_path / "digits-00000001")
    whole = run.timing.read_text()
    run.timing.write_text('{"attempt": "local-1", "globa\n' + whole)
    assert len(records.rows(run.timing, records.TIMING)) == 1
    run.timing.write_text("nothing\nof it\n")
    with pytest.raises(records.Unreadable, match="no line of it is JSON"):
        records.rows(run.timing, records.TIMING)


@pytest.mark.parametrize(
    "content", [*CONTENTS.values(), "{}", '{"job": "digits", "submits": [{"points": 3}]}', None]
)
def test_a_bad_record_of_a_sweep(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.cli import cli
    from launch.runs.records import Unreadable

    run = make(tmp_path / "digits-00000001")
    sweep = SweepDir(tmp_path / "digits.sweep")
    sweep.path.mkdir()
    spoil(RunDir(sweep.path), "sweep.json", content)
    cli(["status", "--runs-dir", str(tmp_path)], standalone_mode=False)
    assert f"{run.run_id}  completed" in capsys.readouterr().out
    for verb in ("status", "report", "cancel"):
        with pytest.raises(Unreadable, match=r"sweep\.json: "):
            cli([verb, "--runs-dir", str(tmp_path), "digits.sweep"], standalone_mode=False)


def test_a_points_bad_file_keeps_no_other_point_from_its_place(tmp_path: Path) -> None:
    job = tmp_path / "s.yaml"
    job.write_text(
        "train: {epochs: 1, global_batch_size: 8, data: {name: digits}, model: {name: mlp, hidden:"
        " [4]}, optimizer: {name: sgd, lr: 0.1}, schedule: {name: constant}}\nsweep: {grid:"
        " {train.seed: [0, 1]}}\n"
    )
    shell = Shell(tmp_path / "runs")
    first = shell.run("show", str(job)).splitlines()[2].split()[-1]
    for content in ("5", '{"job": "s", "train": {"odd": 1}}'):  # and of another version
        spoil(RunDir(shell.runs / first), "config.json", content)
        plan = shell.run("show", str(job)).splitlines()
        assert plan[0] == "s.sweep: 2 points: 1 missing, 1 unreadable"
        assert plan[1].split() == [
            "left",
            "alone",
            "seed=0",
            *f"{first} is unreadable: batchyard status {first} tells why".split(),
        ]


@pytest.mark.parametrize(
    "name",
    ["lock.json", "attempts/local-1/outcome.json", "metrics.jsonl", "attempts/local-1/rank-0.log"],
)
def test_no_verb_waits_for_a_fifo_in_a_files_place(tmp_path: Path, name: str) -> None:
    run = make(tmp_path / "digits-00000000")
    spoil(run, name, "")
    (run.path / name).unlink()
    os.mkfifo(run.path / name)
    printed = ""
    for verb in ("status", "why", "logs", "report"):
        done = subprocess.run(
            [*BATCHYARD, verb, run.run_id, "--runs-dir", str(tmp_path)],
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr
        printed += done.stdout + done.stderr
    assert f"{name}: is a FIFO, a socket or a device" in printed


def test_status_of_a_run_whose_job_is_gone_names_the_verb_that_knows_more(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "digits-00000000")
    write_json(run.config, {"job": "digits"})
    write_json(run.slurm_job, {"job_id": "12"})
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\nexit 0\n")
    squeue.chmod(0o755)
    shell = Shell(run.path.parent, env=(("PATH", f"{tmp_path}:{os.environ['PATH']}"),))
    printed = shell.run("status", run.run_id)
    assert "Slurm job 12 is gone" in printed and f"batchyard why {run.run_id}" in printed
