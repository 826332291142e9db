"""wandb is a sink: offline without a key, online with one, rank 0 alone; broken in any way it never
stops or changes a run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.cli import Shell, step_reached, wait_for
from tests.wandb_server import WandbServer
from trainer.config import wandb_mode
from trainer.config.files.json_files import read_json, read_jsonl, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare

KEY = "0123456789abcdef0123456789abcdef01234567"
AUTO = {"tracking": {"mode": "auto", "project": "tests"}}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, prepared: dict[str, Any]) -> str:
    """Of the same run without wandb."""
    run = ranks.make_run(tmp_path_factory.mktemp("plain"), ranks.config(epochs=1), prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    return ended(run).weights_sha256 or ""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    with WandbServer() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
        monkeypatch.setenv("SLURM_JOB_COMMENT", "not-for-others")
        yield running


def make(folder: Path, prepared: dict[str, Any], world_size: int = 1, **execution: Any) -> RunDir:
    return ranks.make_run(
        folder, ranks.config(ranks=world_size, epochs=1, execution={**AUTO, **execution}), prepared
    )


def fresh(run: RunDir, world_size: int) -> int:
    """An attempt in fresh interpreters, for which this test's environment counts from
    their start.
    """
    return ranks.spawn(["-m", "trainer", str(run.config)], world_size, BATCHYARD_ATTEMPT="local-1")


def ended(run: RunDir, attempt: str = "local-1") -> Outcome:
    found = Outcome.read(run.attempt(attempt).outcome)
    assert found is not None and found.status in ("completed", "stopped"), ranks.logs(run)
    return found


def log_of(run: RunDir, attempt: str = "local-1") -> str:
    return run.attempt(attempt).rank_log(0).read_text()


def steps(rows: list[dict[str, Any]], key: str) -> list[int]:
    return [row["global_step"] for row in rows if key in row]


def test_offline_without_a_key(
    tmp_path: Path,
    prepared: dict[str, Any],
    weights: str,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    run = make(tmp_path, prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert "wandb: offline" in log_of(run) and server.bodies == []
    assert ended(run).weights_sha256 == weights
    (folder,) = run.wandb.glob("offline-run-*")
    inspect = subprocess.run(
        [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": ""},
        check=True,
    )
    for row in read_jsonl(run.metrics):
        assert json.dumps(row["loss"]) in inspect.stdout


def test_online_with_a_key_from_rank_0_alone_and_nothing_private(
    tmp_path: Path, prepared: dict[str, Any], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # each rank's log names what it imports from then on
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    run = make(tmp_path, prepared, world_size=2)
    assert fresh(run, 2) == 0, ranks.logs(run)
    assert list(server.runs) == [run.run_id] and server.unknown == []
    found = server.runs[run.run_id]
    rows, truth = server.history(run.run_id), read_jsonl(run.metrics)
    assert steps(rows, "train/loss") == [r["global_step"] for r in truth if r["kind"] == "train"]
    assert [r["test/accuracy"] for r in rows if "test/accuracy" in r] == [
        r["accuracy"] for r in truth if r["kind"] == "eval"
    ]
    assert found["config"]["global_batch_size"]["value"] == 100 and found["project"] == "tests"
    assert found["exit_code"] == 0 and found["host"] == "batchyard" and found["groupName"] == "t"
    importers = [
        rank for rank in (0, 1) if "wandb.sdk" in run.attempt("local-1").rank_log(rank).read_text()
    ]
    assert importers == [0]
    sent = b"\n".join(server.bodies)
    for private in (KEY, "not-for-others", "SLURM_", str(run.path)):
        assert private.encode() not in sent, private
    files = [p for p in run.path.rglob("*") if p.is_file()]
    assert len(files) > 8 and not [p for p in files if KEY.encode() in p.read_bytes()]


def test_a_continued_run_is_the_same_wandb_run(
    tmp_path: Path,
    prepared: dict[str, Any],
    server: WandbServer,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = make(tmp_path, prepared, stop_after_step=6)
    write_json(run.config, {**read_json(run.config), "sweep": "t.sweep"})  # a point of a sweep
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert server.runs[run.run_id]["preempting"] and server.runs[run.run_id]["exit_code"] == 75
    assert server.runs[run.run_id]["groupName"] == "t.sweep"
    ranks.set_execution(run, stop_after_step=None)
    # the second attempt finds the key where `wandb login` leaves it
    monkeypatch.delenv("WANDB_API_KEY")
    (home / ".netrc").write_text(
        f"machine {server.url.removeprefix('http://')} login user password {KEY}\n"
    )
    assert ranks.train(run, "local-2", 1) == 0, ranks.logs(run)
    assert list(server.runs) == [run.run_id] and server.runs[run.run_id]["exit_code"] == 0
    assert steps(server.history(run.run_id), "train/loss") == [4, 8, 12, 15]


@pytest.mark.parametrize(
    ("name", "word", "offline"),
    [
        ("WANDB_MODE", "offline", True),
        ("WANDB_MODE", "dryrun", True),
        ("WANDB_MODE", "Disabled", False),
        ("WANDB_MODE", "off", False),
        ("WANDB_DISABLED", "true", False),
    ],
)
def test_the_mode_that_a_person_sets_is_kept(
    tmp_path: Path,
    prepared: dict[str, Any],
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    word: str,
    offline: bool,
) -> None:
    monkeypatch.setenv(name, word)
    run = make(tmp_path, prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert server.bodies == [] and "Error" not in log_of(run)
    assert ("wandb: offline" in log_of(run)) == run.wandb.exists() == offline


def test_every_spelling_of_what_is_asked_of_wandb() -> None:
    for mode, words in {
        "online": ["online", "Online", " run ", "shared", "true"],
        "offline": ["offline", "dryrun", "DRYRUN", "dry-run"],
        "disabled": ["disabled", "off", "OFF", "false", "0", "none"],
        None: ["", " "],
    }.items():
        assert {wandb_mode.asked({"WANDB_MODE": word}) for word in words} == {mode}
    for word in ("true", "1", "YES", "on"):
        assert wandb_mode.asked({"WANDB_DISABLED": word, "WANDB_MODE": "online"}) == "disabled"
    for word in ("", "false", "0"):
        assert wandb_mode.asked({"WANDB_DISABLED": word, "WANDB_MODE": "offline"}) == "offline"
    assert wandb_mode.asked({}) is None


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("WANDB_MODE", "is none of online, offline, disabled: set it to one, or unset it"),
        ("WANDB_DISABLED", "is neither true nor false: set it to one, or unset it"),
    ],
)
def test_a_word_without_a_meaning_is_refused_before_the_start(
    tmp_path: Path, name: str, said: str
) -> None:
    shell = Shell(tmp_path / "runs", env=((name, "perhaps"),))
    assert f"wandb: {name}=perhaps {said}\n" in shell.run("submit", "digits", code=2)
    assert not list(shell.runs.glob("*"))
    # where nobody asks wandb
    assert "digits-" in shell.run("show", "digits", "--set", "tracking.mode=disabled")


def test_a_word_without_a_meaning_on_a_node_alone_is_offline(
    tmp_path: Path, prepared: dict[str, Any], server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "perhaps")
    run = make(tmp_path, prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert "wandb: WANDB_MODE=perhaps is none of online, offline, disabled" in log_of(run)
    assert server.bodies == [] and run.wandb.exists()


def test_the_stop_button_cancels_on_all_ranks(
    tmp_path: Path, prepared: dict[str, Any], server: WandbServer
) -> None:
    server.stop_pressed = True  # wandb looks after 15 s
    config = ranks.config(ranks=2, epochs=10_000, execution=AUTO)
    run = ranks.make_run(tmp_path, config, prepared)
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    assert ended(run).verdict == "cancelled" and ended(run).global_step > 0
    assert run.cancel.exists() and list(run.checkpoints.glob("step-*"))


@pytest.mark.parametrize("fault", ["down", 500, "mute"])
def test_a_server_that_does_not_answer_costs_seconds(
    tmp_path: Path, prepared: dict[str, Any], weights: str, server: WandbServer, fault: Any
) -> None:
    if fault == "down":
        server.http.shutdown()
        server.http.server_close()
    else:
        server.fault = fault
    run = make(tmp_path, prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert "wandb: no answer from the server" in log_of(run) and "wandb: offline" in log_of(run)
    assert ended(run).weights_sha256 == weights


def test_a_server_that_refuses_the_key_leaves_an_offline_run(
    tmp_path: Path, prepared: dict[str, Any], weights: str, server: WandbServer
) -> None:
    server.fault = 401
    run = make(tmp_path, prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert "wandb could not start online" in log_of(run) and "wandb: offline" in log_of(run)
    assert ended(run).weights_sha256 == weights


@pytest.mark.parametrize("fault", [500, "gone"])
def test_a_server_that_breaks_in_mid_run_changes_nothing(
    tmp_path: Path,
    prepared: dict[str, Any],
    weights: str,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: Any,
) -> None:
    monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "5")
    run = make(tmp_path, prepared, log_every_steps=1)
    (rank,) = ranks.begin(run, "local-1", 1)
    try:
        wait_for("a row", lambda: not rank.is_alive() or step_reached(run, 1)())
        server.fault = fault
        rank.join(120)
        assert rank.exitcode == 0, ranks.logs(run)
    finally:
        rank.kill()
    assert ended(run).weights_sha256 == weights
    assert len(read_jsonl(run.metrics)) == 16


def test_a_wandb_that_cannot_start_is_told_and_left(
    tmp_path: Path, prepared: dict[str, Any], weights: str
) -> None:
    run = make(tmp_path, prepared)
    run.wandb.write_text("a file where wandb wants a folder")
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert "wandb could not start; metrics.jsonl goes on" in log_of(run)
    assert ended(run).weights_sha256 == weights


def test_a_machine_without_wandb(
    tmp_path: Path, prepared: dict[str, Any], weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken/wandb"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('no wandb here')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    run = make(tmp_path, prepared)
    assert fresh(run, 1) == 0, ranks.logs(run)
    assert "wandb: not installed; metrics.jsonl alone" in log_of(run)
    assert ended(run).weights_sha256 == weights
    # is not even looked for
    disabled = make(tmp_path / "disabled", prepared, tracking={"mode": "disabled"})
    assert fresh(disabled, 1) == 0, ranks.logs(disabled)
    assert "wandb" not in log_of(disabled) and not disabled.wandb.exists()
