"""Outputs that are not finite: null in rows, outcome, figures and pages, and the best
of nothing.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from launch.console.run import result_line
from launch.console.status import Row
from launch.report import sweep_data
from launch.report.run_page import write
from launch.report.sweep_data import best
from launch.results import measurements
from launch.runs import state
from tests import ranks
from tests.test_report import Page, configure, eval_row, lines, start, train_row
from trainer.batches.batches import Batches
from trainer.checkpoints import files
from trainer.config.files.json_files import to_json, write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare
from trainer.evaluate import EvaluationSet, evaluate
from trainer.prepared.arrays import Split
from trainer.prepared.listing import Listing
from trainer.ranks.group import World
from trainer.tools import predict, trained


def strict(text: str) -> Any:
    """JSON as every other reader takes it: without NaN and infinities."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


class Odd(nn.Module):
    """Gives `outputs` numbers of a picture (of masks of each pixel); one of them is `value` where
    the first pixel is 255.
    """

    def __init__(self, outputs: int, value: float, *, masks: bool) -> None:
        super().__init__()
        self.outputs, self.value, self.masks = outputs, value, masks

    def forward(self, images: Tensor) -> Tensor:
        numbers = torch.arange(self.outputs, dtype=torch.float32)
        result = numbers.expand(len(images), -1).clone()
        result[images[:, 0, 0, 0] == 255, 0] = self.value
        return result[:, :, None, None].expand(-1, -1, *images.shape[2:]) if self.masks else result


class AsTheyAre:
    """Batches whose pictures are not normalised."""

    def normalise(self, images: Tensor) -> Tensor:
        return images.float()


LINEAR = {
    "name": "linear",
    "features": 1,
    "w": [1.0],
    "b": 0.0,
    "train_samples": 9,
    "test_samples": 9,
}
TASKS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "classes": (ranks.DIGITS, {"name": "mlp", "hidden": []}, ("accuracy", "accuracy_top5")),
    "masks": ({"name": "voc", "crop": [32, 32]}, {"name": "fcn"}, ("accuracy", "mean_iou")),
    "numbers": (LINEAR, {"name": "mlp", "hidden": []}, ()),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("task", list(TASKS))
def test_one_sample_leaves_no_figure(tmp_path: Path, task: str, value: float) -> None:
    data, model, names = TASKS[task]
    metric = {"best_metric": "loss"} if task == "numbers" else {}
    config = ranks.config(data=data, model=model, **metric).train
    pixels = np.zeros((5, 1, 4, 4), dtype=np.uint8)
    labels = {
        "classes": np.full(5, 11, dtype=np.int64),
        "masks": np.full((5, 4, 4), 11, dtype=np.uint8),
        "numbers": np.zeros((5, 12), dtype=np.float32),
    }[task]
    world = World(
        0, 0, 1, torch.device("cpu"), RunDir(tmp_path), RunDir(tmp_path).attempt("local-1"), None
    )

    def result() -> Any:
        answers, batches = Odd(12, value, masks=task == "masks"), cast(Batches, AsTheyAre())
        data = EvaluationSet(Split(pixels, labels), num_classes=12, batch_size=2)
        return evaluate(answers, data, batches, world, config)

    whole = result()
    assert whole.not_finite == 0 and whole.loss is not None
    assert whole.metrics == dict.fromkeys(names, 1.0) or task == "masks"
    pixels[3, 0, 0, 0] = 255
    odd = result()
    assert odd.not_finite == 1 and odd.loss is None
    assert odd.metrics == dict.fromkeys(names)  # the same names, all None
    assert odd.confusion is None and not odd.predictions and not odd.mistakes and not odd.predicted


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run on two ranks whose rate is far too high: all outputs of its evaluations are NaN."""
    folder = tmp_path_factory.mktemp("diverged")
    train = {
        "data": {"name": "digits", "validation": 0.1},
        "model": {"name": "resnet", "width": 4, "blocks": [1, 1]},
        "optimizer": {"name": "sgd", "lr": 1e18, "momentum": 0.9},
        "schedule": {"name": "constant"},
        "epochs": 3,
        "early_stopping": {"patience_evaluations": 2},
    }
    config = ranks.config(ranks=2, **train)
    run = ranks.make_run(folder, config, prepare(config.train.data, folder, folder))
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    Outcome.read(run.attempt("local-1").outcome).write(run.outcome)  # type: ignore[union-attr]
    return run


def test_rows_and_outcome_hold_null(diverged: RunDir) -> None:
    rows = [strict(line) for line in diverged.metrics.read_text().splitlines()]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    # after the first one the run ends: it cannot recover
    assert [row["split"] for row in evaluations] == ["val", "test"]
    for row in evaluations:
        assert row["loss"] is None and row["accuracy"] is None
        assert row["not_finite"] == {"val": 144, "test": 360}[row["split"]]
    assert any(row["grad_norm"] is None for row in rows if row["kind"] == "train")
    end = strict(diverged.outcome.read_text())
    assert end["verdict"] == "nan" and end["test_accuracy"] is None and "best" not in end["extra"]
    assert "test loss not finite  accuracy not finite" in ranks.logs(diverged)
    assert not (diverged.checkpoints / "best").exists()


def test_figures_hold_null(diverged: RunDir) -> None:
    for split in ("val", "test"):
        found = strict(diverged.evaluation(split).read_text())
        assert found["samples"] is None and found["correct"] is None and found["confusion"] is None
        assert found["not_finite"] == {"val": 144, "test": 360}[split]
    for path in (diverged.predictions, diverged.misclassified):
        assert strict(path.read_text())["pictures"] == []


def test_page_and_status_show_none(diverged: RunDir) -> None:
    page = Page(write(diverged))
    assert "— test accuracy so far, at step 13: not finite" in page.text
    assert (
        "Test set: the outputs of 360 samples were not finite, so none is right or wrong."
        in page.text
    )
    assert "test: NaN at step 13" in page.text
    row = Row.of(diverged, state.standing(diverged))
    assert row.accuracy == "-"
    assert "test accuracy" not in result_line(Outcome.read(diverged.outcome))  # type: ignore[arg-type]


def ended(run: RunDir, rows: list[dict[str, Any]], **outcome: Any) -> RunDir:
    """A completed run with those rows."""
    configure(run)
    lines(run.metrics, rows)
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0)
    end = Outcome("completed", "completed", "local-1", "trainer rank 0", 200, **outcome)
    end.write(run.attempt("local-1").outcome)
    end.write(run.outcome)
    return run


NOTHING = {"loss": None, "accuracy": None, "not_finite": 7}


def test_an_older_evaluation_is_not_the_newest_ones_result(tmp_path: Path) -> None:
    run = ended(
        RunDir(tmp_path / "t-00000001"), [eval_row(100, 0.9), {**eval_row(200, 0.0), **NOTHING}]
    )
    page = Page(write(run))
    assert "— test accuracy: not finite" in page.text and "90.00% test accuracy" not in page.text
    end = Outcome("completed", "completed", "local-1", "t", 200, extra={"test_not_finite": 7})
    assert (
        result_line(end)
        == "completed: no test figure, since the outputs of 7 test samples are not finite, after"
        " 200 steps"
    )


def test_a_point_without_a_finite_validation_is_not_the_best_and_hides_no_other(
    tmp_path: Path,
) -> None:
    sweep = SweepDir(tmp_path / "t.sweep")
    sweep.path.mkdir()
    chosen = {
        "split": "val",
        "metric": "accuracy",
        "value": 0.8,
        "global_step": 200,
        "test_accuracy": 0.7,
    }
    ended(
        RunDir(tmp_path / "t-0"),
        [eval_row(200, 0.8, split="val"), eval_row(200, 0.7)],
        test_accuracy=0.7,
        extra={"best": chosen},
    )
    ended(
        RunDir(tmp_path / "t-1"),
        [{**eval_row(200, 0.0, split="val"), **NOTHING}, eval_row(200, 0.9)],
        test_accuracy=0.9,
    )
    record = [{"axes": {"train.seed": i}, "run_id": f"t-{i}"} for i in range(2)]
    submit = {"started": 1_760_000_000.0, "backend": "local", "settings": [], "points": record}
    write_json(sweep.record, {"job": "t", "submits": [submit]})
    found = sweep_data.read(sweep).points
    first = best(found)
    # not by the test set
    assert first is not None and first.by_validation and first.point is found[0]
    assert best(found[1:]) is None


def test_an_epoch_of_which_a_part_is_not_finite_has_no_mean(tmp_path: Path) -> None:
    rows = [train_row(10, 2.0), {**train_row(20, 0.0), "loss": None, "accuracy": None}]
    run = ended(RunDir(tmp_path / "t-00000001"), rows)
    write_json(
        run.evaluation("test"),
        {"classes": ["a"], "samples": None, "correct": None, "not_finite": 7},
    )
    of = measurements.Run(run, RunConfig.model_validate_json(run.config.read_text()), 0, {})
    assert (
        measurements.measure(of, "train_loss", 1) is None
        and measurements.measure(of, "train_accuracy", 1) is None
    )
    assert measurements.measure(of, "class_accuracy", None, "a") is None
    assert "train: NaN at step 20" in Page(write(run)).text


def test_predict_says_nothing_of_a_picture(tmp_path: Path) -> None:
    config = ranks.config(model={"name": "mlp", "hidden": []}, epochs=1)
    run = ranks.completed(
        tmp_path,
        prepare(config.train.data, tmp_path, tmp_path),
        model={"name": "mlp", "hidden": []},
        epochs=1,
    )
    found, _ = files.find(run, "latest")
    model = trained.load(run, config, found, "cpu")
    Image.new("L", (8, 8), 128).save(tmp_path / "a.png")
    asked = predict.find([tmp_path / "a.png"], tmp_path / "out", Listing())
    (said,) = predict.predict(model, asked)
    assert "top" in said
    with torch.no_grad():
        next(iter(model.model.parameters())).fill_(float("inf"))
    (said,) = predict.predict(dataclasses.replace(model), asked)
    assert said == {"file": str(tmp_path / "a.png"), "problem": predict.NOT_FINITE}


def test_json_has_null_at_any_depth() -> None:
    nan, inf = float("nan"), float("inf")
    assert strict(to_json({"a": [1.5, nan, (inf, {"b": -inf})], "c": True})) == {
        "a": [1.5, None, [None, {"b": None}]],
        "c": True,
    }
    assert to_json({"a": 0.1}, indent=2) == json.dumps({"a": 0.1}, indent=2)
