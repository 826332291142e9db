"""Regression: the data are what made them, the losses what their names say, a run finds w and b,
and goes on to the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import ranks
from tests.cli import Shell
from trainer import tasks
from trainer.config.files.json_files import read_jsonl
from trainer.config.files.layout import RunDir
from trainer.datasets import airfoil
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.prepared.errors import DataError

W, B = [2.0, -3.4], 4.2
LINEAR = {"name": "linear", "features": 2, "w": W, "b": B, "train_samples": 205, "test_samples": 90}
SETTINGS: dict[str, Any] = {
    "epochs": 3,
    "global_batch_size": 10,
    "data": LINEAR,
    "model": {"name": "mlp", "hidden": []},
    "optimizer": {"name": "sgd", "lr": 0.03},
    "schedule": {"name": "constant"},
    "init": {"name": "normal", "std": 0.01},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config(**SETTINGS).train.data, folder, folder)


def completed(folder: Path, prepared: dict[str, Any], world_size: int = 1, **train: Any) -> RunDir:
    return ranks.completed(folder, prepared, world_size, **{**SETTINGS, **train})


def evaluations(run: RunDir, split: str) -> list[dict[str, Any]]:
    return [
        row for row in read_jsonl(run.metrics) if row["kind"] == "eval" and row["split"] == split
    ]


def test_made_rows_are_of_the_line_that_made_them(tmp_path: Path, prepared: dict[str, Any]) -> None:
    data = load(ranks.make_run(tmp_path, ranks.config(**SETTINGS), prepared))
    for split, samples in (("train", 205), ("test", 90)):
        x, y = data.splits[split].read(0, samples)
        assert (x.shape, x.dtype, y.shape, y.dtype) == (
            (samples, 2, 1, 1),
            np.float32,
            (samples, 1),
            np.float32,
        )
        noise = y[:, 0] - (x[:, :, 0, 0] @ np.array(W) + B)
        assert 0.008 < noise.std() < 0.012 and abs(noise.mean()) < 0.003 and 0.85 < x.std() < 1.15
    settings = {**LINEAR, "w": 0.5, "data_seed": 1}
    other = prepare(ranks.config(**{**SETTINGS, "data": settings}).train.data, tmp_path, tmp_path)
    assert other["sha256"] != prepared["sha256"]


def test_both_losses_are_torchs() -> None:
    outputs, labels = torch.randn(7, 3), torch.randn(7, 3)
    for loss, factor in ((None, 1.0), ("mean_squared_error", 1.0), ("half_squared_error", 0.5)):
        config = ranks.config(**{**SETTINGS, "loss": loss}).train
        expected = factor * torch.nn.functional.mse_loss(outputs, labels, reduction="none").mean(1)
        torch.testing.assert_close(
            tasks.squared_loss(outputs, labels, config, reduction="none"), expected
        )
        torch.testing.assert_close(tasks.squared_loss(outputs, labels, config), expected.sum())


def test_a_run_finds_w_and_b_and_says_so(tmp_path: Path, prepared: dict[str, Any]) -> None:
    run = completed(tmp_path, prepared, epochs=12)
    found = ranks.outcome(run, "local-1")
    fit = found.extra["linear_fit"]
    assert fit["w"] == pytest.approx(W, abs=0.005) and fit["b"] == pytest.approx(B, abs=0.005)
    assert (fit["true_w"], fit["true_b"], fit["norm_of_w"]) == (
        W,
        B,
        pytest.approx(np.linalg.norm(fit["w"])),
    )
    assert (
        found.test_accuracy is None
        and found.extra["test_loss"] == evaluations(run, "test")[-1]["loss"]
    )
    assert f"true w {W} b {B:.4f}" in ranks.logs(run)
    # the closed form, once more by the normal equations, and the evaluation of the train rows by
    # the weights
    x, y = load(run).splits["train"].read(0, 205)
    ones = np.concatenate((x.reshape(205, 2), np.ones((205, 1))), axis=1).astype(np.float64)
    least = y - ones @ np.linalg.solve(ones.T @ ones, ones.T @ y)
    assert fit["least_train_loss"] == pytest.approx((least**2).mean(), rel=1e-9)
    assert (
        fit["least_train_loss"]
        < fit["train_loss"]
        == pytest.approx(evaluations(run, "train")[-1]["loss"], rel=1e-3)
    )
    assert all("accuracy" not in row for row in read_jsonl(run.metrics))
    # rows are no pictures
    assert not run.samples.exists() and not run.evaluation("test").exists()


def test_a_deeper_model_has_no_line_to_tell_of(tmp_path: Path, prepared: dict[str, Any]) -> None:
    run = completed(tmp_path, prepared, epochs=1, model={"name": "mlp", "hidden": [4]})
    assert set(ranks.outcome(run, "local-1").extra) == {"test_loss"}


def test_evaluations_do_not_depend_on_the_ranks(tmp_path: Path, prepared: dict[str, Any]) -> None:
    one = completed(tmp_path / "one", prepared, epochs=1, parity="bitwise", parity_shards=2)
    two = completed(tmp_path / "two", prepared, 2, epochs=1, parity="bitwise", parity_shards=2)
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    assert (
        ranks.outcome(one, "local-1").weights_sha256 == ranks.outcome(two, "local-1").weights_sha256
    )


@pytest.mark.parametrize(
    ("world_size", "optimizer"),
    [
        (1, {"name": "adagrad", "lr": 0.1}),
        (2, {"name": "rmsprop", "lr": 0.01, "alpha": 0.9}),
        (2, {"name": "adadelta", "lr": 1.0}),
    ],
)
def test_a_stopped_run_continues_to_the_same_bits(
    tmp_path: Path, prepared: dict[str, Any], world_size: int, optimizer: dict[str, Any]
) -> None:
    settings = {
        **SETTINGS,
        "optimizer": optimizer,
        "data": {**LINEAR, "validation": 0.2},
        "best_metric": "loss",
    }
    whole = completed(tmp_path / "whole", prepared, world_size, **settings)
    run = ranks.make_run(tmp_path / "stopped", ranks.config(ranks=world_size, **settings), prepared)
    # 17 steps an epoch
    for attempt, stop in (("local-1", 7), ("local-2", 34), ("local-3", None)):
        ranks.set_execution(run, stop_after_step=stop)
        assert ranks.train(run, attempt, world_size) == 0, ranks.logs(run)
    expected, found = ranks.outcome(whole, "local-1"), ranks.outcome(run, "local-3")
    assert found.weights_sha256 == expected.weights_sha256 and found.extra == expected.extra
    assert found.extra["best"]["metric"] == "loss"
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_weight_decay_shrinks_the_weights_and_not_the_bias(tmp_path: Path) -> None:
    data = {
        "name": "linear",
        "features": 200,
        "w": 0.01,
        "b": 0.05,
        "train_samples": 20,
        "test_samples": 100,
    }
    settings: dict[str, Any] = {
        "data": data,
        "global_batch_size": 1,
        "epochs": 60,
        "loss": "half_squared_error",
        "init": {"name": "normal", "std": 1.0},
        "evaluate_every_epochs": 60,
    }
    made = prepare(ranks.config(**{**SETTINGS, **settings}).train.data, tmp_path, tmp_path)
    fits, gaps = [], []
    for decay in ({}, {"weight_decay": 3.0, "decay_bias_and_norm": False}):
        run = completed(
            tmp_path / f"decay-{len(fits)}",
            made,
            **settings,
            optimizer={"name": "sgd", "lr": 0.003, **decay},
        )
        fits.append(ranks.outcome(run, "local-1").extra["linear_fit"])
        gaps.append(evaluations(run, "test")[-1]["loss"] - evaluations(run, "train")[-1]["loss"])
    assert fits[0]["norm_of_w"] > 10 and fits[1]["norm_of_w"] < 1
    assert gaps[0] > 50 and gaps[1] < 1  # fitted by heart; with decay the curves meet


def test_the_airfoil_table_is_standardised_over_all_rows() -> None:
    table = np.random.RandomState(0).normal(3.0, [1, 2, 3, 4, 5, 6], (1503, 6))
    text = "\n".join("\t".join(f"{v:.6f}" for v in row) for row in table).encode()
    rows, notes = airfoil.read(text)
    pieces = {piece.split: piece for piece in airfoil.convert(rows)}
    assert (
        pieces["train"].images.shape == (1500, 5, 1, 1)
        and pieces["test"].labels.shape == (3, 1)
        and notes == []
    )
    x, y = (
        np.concatenate([getattr(p, name).reshape(len(p.labels), -1) for p in pieces.values()])
        for name in ("images", "labels")
    )
    whole = np.concatenate((x, y), axis=1)
    assert np.abs(whole.mean(0)).max() < 1e-5 and np.abs(whole.std(0) - 1).max() < 1e-5
    assert np.corrcoef(whole[:, 2], table[:, 2])[0, 1] > 0.999999


@pytest.mark.long
def test_a_table_that_cannot_be_used_is_refused_before_anything_is_queued(tmp_path: Path) -> None:
    (tmp_path / "airfoil").mkdir()
    file = tmp_path / "airfoil" / "airfoil_self_noise.dat"
    rows = [["1", "2", "3", "4", "5", str(i)] for i in range(1503)]
    rows[4][2], rows[8][0] = "nan", "n/a"
    file.write_text("\n".join("\t".join(row) for row in rows))
    shell = Shell(tmp_path / "runs")
    given = (
        "--data-dir",
        str(tmp_path),
        "--set",
        "sweep=null",
        "--set",
        "execution.allow_unverified_data=true",
    )
    told = (
        "airfoil: airfoil_self_noise.dat has 2 field(s) that are no finite number: "
        "line 5, column 3: 'nan'; line 9, column 1: 'n/a'; remove or complete these lines"
    )
    assert told in shell.run("check", "--deep", "optimizers_airfoil", *given, code=1)
    assert told in shell.run("submit", "optimizers_airfoil", *given, code=2)
    rows[4][2], rows[8][0] = "3", "1"
    file.write_text("\n".join("\t".join(row) for row in rows))
    note = (
        "airfoil: airfoil_self_noise.dat: column 1 never changes (it is 1 in every row): it is left"
        " at zero"
    )
    short = ("--set", "train.max_steps=4", "--set", "tracking.mode=disabled")
    printed = shell.run("submit", "optimizers_airfoil", *given, *short)
    assert note in printed and "completed: test loss" in printed
    assert note in shell.run("check", "--deep", "optimizers_airfoil", *given)
    assert note in shell.run("data", "optimizers_airfoil", *given)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"1 2\n3 4\n", "is no table of numbers with 6 columns, .*: line 1 is '1 2'"),
        (b"1 2 3 4 5 6\n", "is a table of 1 x 6 numbers; expected 1503 x 6"),
        (b"<html>", "is no table of numbers but a web page"),
    ],
)
def test_another_file_is_told(text: bytes, told: str) -> None:
    with pytest.raises(DataError, match=told):
        airfoil.read(text)


def test_made_targets_that_float32_does_not_hold_are_refused(tmp_path: Path) -> None:
    config = ranks.config(**{**SETTINGS, "data": {**LINEAR, "w": [1e300, 1.0]}}).train.data
    with pytest.raises(DataError, match="w, b and noise make targets that float32 does not hold"):
        prepare(config, tmp_path, tmp_path)


def test_a_table_that_is_not_there_names_the_job_that_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nothing listens there: no table by the network either
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    config = ranks.config(**{**SETTINGS, "data": {"name": "airfoil"}}).train.data
    with pytest.raises(
        DataError,
        match=r"airfoil_self_noise.dat not in .*, nor could be fetched.*`optimizers_airfoil_made`",
    ):
        prepare(config, tmp_path, tmp_path)
