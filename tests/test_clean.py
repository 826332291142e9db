"""clean removes what finished runs no longer need, tells its size first, and leaves all that may go
on alone.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.runs import clean
from launch.runs.state import standing
from tests.cli import Shell
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome, Status, Verdict


def made(
    runs: Path,
    name: str,
    status: Status = "completed",
    verdict: Verdict = "completed",
    ended: float = 0.0,
) -> RunDir:
    run = RunDir(runs / name)
    write_json(run.config, {"job": name.partition("-")[0]})
    write_json(
        run.attempt("local-1").record, {"started": 1.0, "ended": ended or time.time(), "host": "n1"}
    )
    Outcome(status, verdict, "local-1", "trainer rank 0", 30).write(run.attempt("local-1").outcome)
    for step in (
        "step-10.local-1",
        "step-20.local-1",
        "step-30.local-1",
        "bad-step-5.local-1",
        "step-3.local-1.tmp",
    ):
        (run.checkpoints / step).mkdir(parents=True)
        (run.checkpoints / step / "weights.pt").write_bytes(bytes(100_000))
    (run.checkpoints / "latest").symlink_to("step-30.local-1")
    (run.checkpoints / "best").symlink_to("step-10.local-1")
    run.attempt("local-1").not_finite.write_bytes(bytes(5000))
    return run


def left(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir())


ALL = [
    "bad-step-5.local-1",
    "best",
    "latest",
    "step-10.local-1",
    "step-20.local-1",
    "step-3.local-1.tmp",
    "step-30.local-1",
]
KEPT = ["best", "latest", "step-10.local-1", "step-30.local-1"]


def test_finished_runs_keep_best_and_last_and_others_keep_all(tmp_path: Path) -> None:
    done, failed = made(tmp_path, "a-1"), made(tmp_path, "b-1", "failed", "nan")
    stopped = made(tmp_path, "c-1", "stopped", "timeout")
    shell = Shell(tmp_path)
    printed = shell.run("clean", "--dry-run")
    assert (
        "a-1: checkpoints/bad-step-5.local-1, checkpoints/step-20.local-1,"
        " checkpoints/step-3.local-1.tmp, attempts/" in printed
    )
    assert "0.3 MB of 1 run in" in printed and "would be removed" in printed and left(done) == ALL
    # nobody answered
    assert "remove 0.3 MB" in shell.run("clean", code=130) and left(done) == ALL
    assert "removed 0.3 MB" in shell.run("clean", "--yes")
    assert left(done) == KEPT and (done.checkpoints / "best/weights.pt").exists()
    assert not done.attempt("local-1").not_finite.exists()
    assert left(failed) == left(stopped) == ALL
    assert "nothing to remove" in shell.run("clean", "--yes")


def test_by_name_and_by_age(tmp_path: Path) -> None:
    old, new, other = (
        made(tmp_path, "a-1", ended=time.time() - 40 * 86400),
        made(tmp_path, "a-2"),
        made(tmp_path, "b-1"),
    )
    shell = Shell(tmp_path)
    shell.run("clean", "--yes", "--older-than", "30d")
    assert left(old) == KEPT and left(new) == left(other) == ALL
    shell.run("clean", "--yes", "b-1")
    assert left(other) == KEPT and left(new) == ALL
    assert "found '3 moons'; expected a number and m, h, d or w, as in 30d" in shell.run(
        "clean", "--older-than", "3 moons", code=2
    )
    assert "no run is called 'x'" in shell.run("clean", "x", code=2)


@pytest.mark.parametrize(
    ("age", "expected"), [("90m", 5400), ("12h", 43200), ("1.5d", 129600), ("2w", 1209600)]
)
def test_ages(age: str, expected: float) -> None:
    assert clean.seconds(age) == expected


def test_links_that_point_nowhere_keep_every_checkpoint(tmp_path: Path) -> None:
    run = made(tmp_path, "a-1")
    for name in ("latest", "best"):
        (run.checkpoints / name).unlink()
    found = clean.removals(run, standing(run), time.time())
    assert found and [p.name for p in found.paths] == ["not-finite.pt"]


def test_a_run_on_which_a_submit_works_is_left_alone(tmp_path: Path) -> None:
    from trainer.config.files.lock import Lock

    run = made(tmp_path, "a-1")
    lock = Lock(run.submit_lock)
    assert lock.acquire()
    assert "a submit works on it; left alone" in Shell(tmp_path).run("clean", "--yes", code=1)
    lock.release()
    assert left(run) == ALL
