"""What train settings do: validation, early stopping, the average of the weights, fp16, compile;
and updates that never count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import ranks
from trainer import models, optim
from trainer.batches.batches import Batches, Sampling
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare
from trainer.guard import FIRST_SCALE, GROWTH_INTERVAL, LEAST_SCALE, Guard
from trainer.prepared.arrays import Split, hold_out, load

MLP = {"name": "mlp", "hidden": [32]}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


def completed(folder: Path, prepared: dict[str, Any], **train: Any) -> tuple[RunDir, Outcome]:
    run = ranks.completed(folder, prepared, **train)
    return run, ranks.outcome(run, "local-1")


def evaluations(run: RunDir, split: str) -> list[dict[str, Any]]:
    return [
        row for row in read_jsonl(run.metrics) if row["kind"] == "eval" and row["split"] == split
    ]


def test_held_out_pictures_are_never_trained_on(tmp_path: Path, prepared: dict[str, Any]) -> None:
    whole = load(ranks.make_run(tmp_path, ranks.config(), prepared))
    data = load(ranks.make_run(tmp_path, ranks.config(), prepared), 0.2)
    train, held = data.splits["train"], data.splits["val"]
    assert (
        (len(train), len(held)) == (1150, 287)
        and train.chosen is not None
        and held.chosen is not None
    )
    assert sorted([*train.chosen, *held.chosen]) == list(range(1437))
    pixels, labels = held.read(3, 5)
    assert np.array_equal(pixels, whole.splits["train"].images[held.chosen[3:5]])
    assert np.array_equal(labels, whole.splits["train"].labels[held.chosen[3:5]])
    config = ranks.config(data={"name": "digits"}).train
    for epoch in (0, 1):
        batches = Batches(
            data,
            config.data,
            sampling=Sampling(epoch, 100, 100, rank=0, world_size=1),
            device=torch.device("cpu"),
        )
        assert batches.steps_per_epoch == 12
        seen = [batches.at(epoch * 12 + step)[0] for step in range(12)]
        assert sum(len(b.labels) for b in seen) == 1150
        expected = np.sort(whole.splits["train"].images[train.chosen].reshape(1150, -1).sum(1))
        found = (
            torch.cat([batches.for_the_eye(b.images) for b in seen])
            .reshape(1150, -1)
            .sum(1, dtype=torch.int64)
            .sort()
            .values
        )
        assert np.array_equal(found.numpy(), expected)  # each picture once, and no other


def test_at_least_one_picture_on_either_side() -> None:
    split = Split(np.zeros((3, 1, 2, 2), np.uint8), np.zeros(3, np.int64))
    for fraction, held in ((0.01, 1), (0.99, 2)):
        assert [len(s) for s in hold_out(split, fraction)] == [3 - held, held]


def test_early_stopping_ends_the_run_and_the_best_checkpoint_is_kept(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    # a rate that soon gets no better; checkpoints after it would push the best one out if it were
    # not held
    run, outcome = completed(
        tmp_path,
        prepared,
        epochs=40,
        model=MLP,
        data={"name": "digits", "validation": 0.2},
        schedule={"name": "constant"},
        optimizer={"name": "sgd", "lr": 0.5, "momentum": 0.9},
        early_stopping={"patience_evaluations": 3, "min_delta": 0.002},
    )
    val, test = evaluations(run, "val"), evaluations(run, "test")
    assert outcome.extra["early_stopped"] is True and len(val) < 40
    best = outcome.extra["best"]
    place = next(i for i, row in enumerate(val) if row["global_step"] == best["global_step"])
    assert best == {
        "split": "val",
        "metric": "accuracy",
        "value": val[place]["accuracy"],
        "global_step": val[place]["global_step"],
        "test_accuracy": test[place]["accuracy"],
    }
    assert (
        all(row["accuracy"] <= best["value"] + 0.002 for row in val) and len(val) == place + 1 + 3
    )
    assert outcome.test_accuracy == test[-1]["accuracy"]
    kept = {p.name for p in run.checkpoints.iterdir() if not p.is_symlink()}
    assert (
        (run.checkpoints / "best").resolve().name == f"step-{best['global_step']}.local-1" in kept
    )
    assert (run.checkpoints / "latest").resolve().name == f"step-{outcome.global_step}.local-1"


def test_max_steps_ends_within_an_epoch_with_an_evaluation(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    # 15 steps an epoch
    run, outcome = completed(tmp_path, prepared, epochs=3, max_steps=20, model=MLP)
    assert outcome.global_step == 20 and [
        row["global_step"] for row in evaluations(run, "test")
    ] == [15, 20]
    # the cosine ends where the run does
    assert read_jsonl(run.metrics)[-2]["lr"] == pytest.approx(0, abs=1e-12)
    assert read_jsonl(run.timing)[-1]["total_steps"] == 20


def test_rows_are_means_over_the_same_steps_of_each_epoch(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    def rows(every: int) -> list[dict[str, Any]]:
        config = ranks.config(model=MLP, execution={"log_every_steps": every})
        run = ranks.make_run(tmp_path / str(every), config, prepared)
        assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
        return [row for row in read_jsonl(run.metrics) if row["kind"] == "train"]

    found, single = rows(4), rows(1)  # 15 steps an epoch, the last one of 37 samples
    assert [row["global_step"] for row in found] == [4, 8, 12, 15, 19, 23, 27, 30]
    assert [row["samples"] for row in found] == [400, 400, 400, 237] * 2
    for before, row in zip([0, 4, 8, 12, 15, 19, 23, 27], found, strict=True):
        steps = single[before : row["global_step"]]
        mean = sum(s["loss"] * s["samples"] for s in steps) / row["samples"]
        assert row["loss"] == pytest.approx(mean, rel=1e-12)


def test_without_a_validation_split_there_is_no_best(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run, outcome = completed(tmp_path, prepared, epochs=1, model=MLP)
    assert (
        outcome.extra == {}
        and not (run.checkpoints / "best").exists()
        and not evaluations(run, "val")
    )


def test_what_a_person_looks_at_is_the_evaluation(tmp_path: Path, prepared: dict[str, Any]) -> None:
    run, outcome = completed(tmp_path, prepared, model=MLP)
    found = read_json(run.evaluation("test"))
    assert (
        np.array(found["confusion"]).sum() == sum(found["samples"]) == 360
        and found["global_step"] == outcome.global_step
    )
    assert (
        sum(found["correct"]) / 360
        == outcome.test_accuracy
        == np.trace(np.array(found["confusion"])) / 360
    )
    wrong = read_json(run.misclassified)["pictures"]
    assert len(wrong) == min(16, 360 - sum(found["correct"])) and all(
        p["truth"] != p["predicted"] for p in wrong
    )
    odds = [p["probability"] for p in wrong]
    assert odds == sorted(odds, reverse=True) and 0 < odds[-1] <= odds[0] <= 1
    shown = read_json(run.predictions)["pictures"]
    # the first six, and six from all over
    assert [p["sample"] for p in shown] == [0, 1, 2, 3, 4, 5, 60, 120, 180, 240, 300]
    _, truth = load(run, None).splits["test"].read(0, 360)
    assert [p["truth"] for p in shown] == [found["classes"][truth[p["sample"]]] for p in shown]
    known = {p["sample"]: p for p in wrong}
    assert all(known.get(p["sample"], p) == p and 0 < p["probability"] <= 1 for p in shown)
    assert len(read_json(run.samples)["pictures"]) == 16
    assert "accuracy_top5" not in evaluations(run, "test")[-1]  # ten classes


@pytest.mark.parametrize("world_size", [2, 3])
def test_predictions_do_not_depend_on_the_ranks(
    tmp_path: Path, prepared: dict[str, Any], world_size: int
) -> None:
    """300 and 240 of 360 are in batches that the first rank never sees."""
    shown = []
    for size in (1, world_size):
        config = ranks.config(ranks=size, epochs=1, model=MLP, parity="bitwise", parity_shards=4)
        run = ranks.make_run(tmp_path / str(size), config, prepared)
        assert ranks.train(run, "local-1", size) == 0, ranks.logs(run)
        shown.append((run.predictions.read_bytes(), run.misclassified.read_bytes()))
    assert shown[0] == shown[1]


def test_top_5_above_ten_classes(tmp_path: Path) -> None:
    settings = {
        "data": {"name": "synthetic", "samples": 240, "classes": 24, "size": 8, "channels": 1},
        "model": MLP,
    }
    made = prepare(ranks.config(**settings).train.data, tmp_path, tmp_path)
    run, _ = completed(tmp_path / "runs", made, **settings)
    for row in evaluations(run, "test"):
        assert row["accuracy"] <= row["accuracy_top5"] <= 1
    assert evaluations(run, "test")[0]["accuracy_top5"] > evaluations(run, "test")[0]["accuracy"]


def test_the_average_is_what_its_formula_says() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = optim.Average(model, decay=0.9)
    expected = {k: v.double().clone() for k, v in model.state_dict().items()}
    for step in range(1, 121):
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn(tensor.shape).to(tensor.dtype))
        refused = torch.tensor(float(step % 7 == 0))
        average.update(step, refused)
        decay = min(0.9, step / (9 + step)) if not refused else 1.0
        for name, now in model.state_dict().items():
            expected[name] = (
                expected[name] * decay + now.double() * (1 - decay)
                if now.is_floating_point()
                else now.double()
            )
    for name, found in average.model.state_dict().items():
        torch.testing.assert_close(found.double(), expected[name], rtol=1e-5, atol=1e-5)


def test_the_average_is_what_is_evaluated_and_kept(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    plain_run, plain = completed(tmp_path / "plain", prepared)
    run, averaged = completed(tmp_path / "averaged", prepared, ema_decay=0.95)
    assert plain.weights_sha256 != averaged.weights_sha256
    trained = [row for row in read_jsonl(run.metrics) if row["kind"] == "train"]
    # training itself is the same
    assert trained == [row for row in read_jsonl(plain_run.metrics) if row["kind"] == "train"]
    state = torch.load(run.checkpoints / "latest/trainer.pt", weights_only=True)["model"]
    weights = torch.load(plain_run.checkpoints / "latest/weights.pt", weights_only=True)
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def guarded(precision: str) -> tuple[torch.nn.Module, torch.optim.Optimizer, Guard, Any]:
    train = ranks.config(optimizer={"name": "sgd", "lr": 0.1, "momentum": 0.9}).train
    torch.manual_seed(0)
    model = models.build(train.model, 10, 1, (8, 8))
    optimizer = optim.build(model, train)
    guard = Guard(model, optimizer, precision, torch.device("cpu"))

    def step(spoil: float | None = None) -> None:
        optimizer.zero_grad(set_to_none=False)
        images = torch.randn(4, 1, 8, 8) * (spoil or 1.0)
        guard.scaled(model(images).sum()).backward()
        guard.gradient_norm()
        optimizer.step()
        guard.settle()

    return model, optimizer, guard, step


def state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    floats = [v.clone() for v in model.state_dict().values() if v.is_floating_point()]
    return floats + [s["momentum_buffer"].clone() for s in optimizer.state.values()]


def test_after_a_gradient_that_is_not_finite_nothing_changes_any_more() -> None:
    model, optimizer, guard, step = guarded("fp32")
    step()
    step()
    before = state(model, optimizer)
    assert not guard.spoilt() and len(guard.buffers) > 0
    step(float("nan"))
    # a good batch does not bring it back: its number is to be found at the next checkpoint
    step()
    assert guard.spoilt() and guard.good_steps() == 2
    for old, new in zip(before, state(model, optimizer), strict=True):
        assert torch.equal(old, new)  # weights, momentum and BatchNorm's running statistics


def test_fp16_halves_its_scale_and_goes_on() -> None:
    model, optimizer, guard, step = guarded("fp16")
    assert guard.scale is not None
    step()
    before = state(model, optimizer)
    step(float("inf"))
    assert guard.scale.item() == FIRST_SCALE / 2 and not guard.spoilt()
    assert all(
        torch.equal(old, new) for old, new in zip(before, state(model, optimizer), strict=True)
    )
    step()
    assert not all(
        torch.equal(old, new) for old, new in zip(before, state(model, optimizer), strict=True)
    )
    guard.growth_tracker.fill_(GROWTH_INTERVAL - 1)
    step()
    assert guard.scale.item() == FIRST_SCALE
    for _ in range(27):
        step(float("nan"))
    assert guard.scale.item() < LEAST_SCALE and guard.spoilt()


def test_the_loss_scale_does_not_change_the_gradient() -> None:
    norms = []
    for precision in ("fp32", "fp16"):
        model, optimizer, guard, _ = guarded(precision)
        optimizer.zero_grad(set_to_none=False)
        guard.scaled(model(torch.ones(4, 1, 8, 8)).square().sum()).backward()
        norms.append(guard.gradient_norm().item())
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


@pytest.mark.long
def test_fp16_and_compile_learn_what_fp32_learns(tmp_path: Path, prepared: dict[str, Any]) -> None:
    settings = {"epochs": 4, "model": MLP, "optimizer": {"name": "sgd", "lr": 0.2, "momentum": 0.9}}
    _, plain = completed(tmp_path / "fp32", prepared, **settings)
    _, half = completed(tmp_path / "fp16", prepared, **settings, precision="fp16")
    compiled_run, compiled = completed(tmp_path / "compiled", prepared, **settings, compile=True)
    assert plain.test_accuracy is not None and plain.test_accuracy > 0.85
    assert (
        half.test_accuracy == pytest.approx(plain.test_accuracy, abs=0.02)
        and half.weights_sha256 != plain.weights_sha256
    )
    assert compiled.test_accuracy == pytest.approx(plain.test_accuracy, abs=0.02)
    weights = torch.load(compiled_run.checkpoints / "latest/weights.pt", weights_only=True)
    assert all(not name.startswith("_orig_mod") for name in weights)
