"""drill: what it plans, what it calls a difference, and five real kills that change nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from launch.drill import cluster
from launch.drill import kills as drill
from tests.cli import Shell
from trainer.config.files.layout import RunDir


def test_each_kind_of_kill_as_often_as_the_others_and_in_order() -> None:
    kills = drill.plan(50, 7, 345, 4, 3)
    assert kills == drill.plan(50, 7, 345, 4, 3) != drill.plan(50, 8, 345, 4, 3)
    assert set(Counter(k.kind for k in kills).values()) == {10}
    assert all(0 < k.step < 345 and 0 <= k.rank < 4 for k in kills)
    assert all(k.step % 3 == 0 and k.point in drill.POINTS for k in kills if k.kind == "checkpoint")
    asked = [k.step for k in kills if k.kind != "checkpoint"]
    assert asked == sorted(asked)


def test_the_first_difference_is_named(tmp_path: Path) -> None:
    rows = [{"kind": "train", "global_step": i, "loss": 1 / i} for i in range(1, 5)]
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert drill.difference(one, other) is None
    rows[2]["loss"] = 0.25
    other.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert drill.difference(one, other) == f"row 3 (global_step 3): loss {1 / 3} against 0.25"
    other.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert str(drill.difference(one, other)).startswith(
        "row 3 (global_step 3): kind train against None, "
    )
    other.unlink()
    assert "row 1" in str(drill.difference(one, other))


def test_another_hash_is_no_pass() -> None:
    right = drill.Result([], ("a", "a"), 3, None, [], [], ["completed"])
    assert right.equal
    for change in (
        {"weights": ("a", "b")},
        {"weights": (None, None)},
        {"first_difference": "row 1"},
        {"spoilt": ["bad-step-3"]},
        {"left_alive": ["12 python -m trainer"]},
    ):
        assert not drill.Result(**{**right.__dict__, **change}).equal  # type: ignore[arg-type]


def test_a_kill_in_a_checkpoint_that_a_late_stop_has_written_already_takes_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM asked for at step 27 came to its end at 30, and the kill in the checkpoint of step 30
    was never reached.
    """
    begun: list[str] = []

    class Ended:
        returncode = 1

        def poll(self) -> int:
            return 1

        wait = poll

    monkeypatch.setattr(
        drill.Drill, "submit", lambda self, which, every, fault="": begun.append(fault) or Ended()
    )
    it = drill.Drill("digits", [], tmp_path, 5, 0)
    latest = tmp_path / "disturbed/x/checkpoints/latest"
    (latest.parent / "step-30.local-2").mkdir(parents=True)
    latest.symlink_to("step-30.local-2")
    for asked, every, steps in ((30, 6, 60), (42, 6, 60), (30, 40, 60), (24, 12, 60)):
        it._kill("x", drill.Kill("checkpoint", asked, 0, "prune"), every, steps)
    assert begun == ["kill:prune:36", "kill:prune:42", "kill:prune:40", "kill:prune:36"]
    # twice at one point of one step: the second would never come
    (tmp_path / "disturbed/x/.killed-prune-42").touch()
    it._kill("x", drill.Kill("checkpoint", 42, 0, "prune"), 6, 60)
    assert begun[-1] == "kill:prune:48"


def test_a_kill_waits_for_a_step_of_its_own_attempt(tmp_path: Path) -> None:
    """A signal sent as soon as an earlier attempt's steps were there hit a launcher that had not
    begun, or nobody.
    """
    run = RunDir(tmp_path / "x")
    run.path.mkdir()
    run.timing.write_text('{"attempt": "local-1", "global_step": 30}\n')
    assert drill.step_of_others(run, {"local-1"}) == -1
    with run.timing.open("a") as file:
        file.write('{"attempt": "local-2", "global_step": 25}\n{"attempt": "local-2", "glob')
    assert drill.step_of_others(run, {"local-1"}) == 25


def test_a_cluster_strikes_in_turn_and_cuts_the_power_once_at_the_end() -> None:
    strikes = cluster.plan(4, 3, 1000, ["signal", "requeue", "cut"])
    assert [s.kind for s in strikes] == ["signal", "requeue", "signal", "cut"]
    assert all(225 * i < s.step < 225 * (i + 1) for i, s in enumerate(strikes))
    again, other = (cluster.plan(4, seed, 1000, ["signal", "requeue", "cut"]) for seed in (3, 4))
    assert strikes == again != other
    assert [s.kind for s in cluster.plan(3, 0, 100, ["preempt"])] == ["preempt"] * 3
    assert [s.kind for s in cluster.plan(1, 0, 100, ["preempt", "cut"])] == ["cut"]


def test_words_for_a_cluster_are_refused_elsewhere(tmp_path: Path) -> None:
    for option in (
        ("--timeout-min", "1"),
        ("--preempt-with", "--qos=high"),
        ("--cut-with", "true"),
    ):
        assert "are for --backend slurm" in Shell(tmp_path).run("drill", "digits", *option, code=2)


@pytest.mark.long
def test_five_kills_change_nothing(tmp_path: Path) -> None:
    printed = Shell(tmp_path).run(
        "drill", "digits", "--kills", "5", "--seed", "1", "--steps", "60", timeout_s=600
    )
    assert "kills: 1 TERM, 1 checkpoint, 1 session, 1 torchrun, 1 worker" in printed
    assert "the same\n" in printed and "the same bytes" in printed, printed
    assert "could not be read: none" in printed and "processes left: none" in printed
