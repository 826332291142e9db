"""The report on runs that learn numbers or masks: losses, w and b, IoU, and pictures beside their
masks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.console.run import result_line
from launch.report import write, write_sweep
from tests.test_report import HOSTILE, Page, configure, lines, start, train_row
from tests.test_report_evaluation import CONFUSION, PETS, change, encoded, evaluation, png
from tests.test_sweep_report import point, record
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.outcome import Outcome

FIT = {
    "w": [1.9994, -3.4001],
    "b": 4.1987,
    "norm_of_w": 3.944,
    "true_w": [2.0, -3.4],
    "true_b": 4.2,
    "train_loss": 9.12e-05,
    "least_train_loss": 9.1e-05,
}
COLOURS = [{"name": "sky", "colour": [0, 0, 0]}, {"name": "road", "colour": [128, 0, 0]}]


def finished(
    run: RunDir, rows: list[dict[str, Any]], test_accuracy: float | None, **extra: Any
) -> Outcome:
    run.path.mkdir(parents=True)
    configure(run, job="lines")
    train = [{k: v for k, v in train_row(s, 2.0 / s).items() if k != "accuracy"} for s in (10, 20)]
    lines(
        run.metrics,
        train + [{"kind": "eval", "global_step": 20, "epoch": 2, **row} for row in rows],
    )
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0)
    end = Outcome(
        "completed",
        "completed",
        "local-1",
        "trainer rank 0",
        20,
        test_accuracy=test_accuracy,
        extra=extra,
    )
    end.write(run.attempt("local-1").outcome)
    end.write(run.outcome)
    return end


@pytest.fixture
def numbers(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "lines-1a2b3c4d")
    finished(
        run,
        [{"split": "train", "loss": 9.12e-05}, {"split": "test", "loss": 9.7e-05}],
        None,
        linear_fit=FIT,
    )
    return run


@pytest.fixture
def masks(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "scenes-1a2b3c4d")
    row = {"split": "test", "loss": 0.5, "accuracy": 0.81, "mean_iou": 0.4321}
    finished(run, [row], 0.81, test_mean_iou=0.4321)
    evaluation(run, PETS, CONFUSION)
    change(run.evaluation("test"), iou=[0.8, 0.85, None])
    picture = encoded(png(6, 4))
    scene = {
        "picture": picture,
        "truth": picture,
        "predicted": picture,
        "accuracy": 0.75,
        "sample": 3,
    }
    write_json(
        run.masks,
        {
            "split": "test",
            "global_step": 20,
            "classes": COLOURS,
            "scenes": [scene, {**scene, "truth": "x"}],
        },
    )
    return run


def test_tells_what_a_regression_found(numbers: RunDir) -> None:
    page = Page(write(numbers))
    for said in (
        "9.7e-5 test loss",
        "1.9994, -3.4001 true: 2, -3.4",
        "Learnt b 4.1987 true: 4.2",
        "Train loss 9.12e-5",
        "least squares: 9.1e-5",
    ):
        assert said in page.text, said
    assert (
        "Norm of w 3.94" in page.text
        and "Accuracy" not in page.text
        and "Mean IoU" not in page.text
    )


def test_many_weights_are_told_by_their_norm(numbers: RunDir) -> None:
    change(numbers.outcome, extra={"linear_fit": {**FIT, "w": [0.1] * 200, "true_w": [0.01] * 200}})
    page = Page(write(numbers))
    assert "of 200 weights" in page.text and "Learnt w" not in page.text


@pytest.mark.parametrize(
    "odd",
    [
        3,
        [],
        {"w": "x", "b": HOSTILE},
        {"w": [HOSTILE], "norm_of_w": [], "true_w": 7},
        {"w": None, "true_w": {"a": 1}},
    ],
)
def test_another_fit_leaves_the_page_whole(numbers: RunDir, odd: Any) -> None:
    change(numbers.outcome, extra={"linear_fit": odd})
    assert "test loss" in Page(write(numbers)).text


def test_a_sweep_of_numbers_has_losses_and_chooses_nothing_on_the_test_set(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "runs" / "lines.sweep")
    sweep.path.mkdir(parents=True)
    record(sweep, [point("lines-00000001", lr=0.1), point("lines-00000002", lr=0.4)])
    for i in (1, 2):
        rows = [{"split": "train", "loss": 0.2 * i}, {"split": "test", "loss": 0.3 * i}]
        finished(sweep.run(f"lines-0000000{i}"), rows, None)
    page = Page(write_sweep(sweep))
    assert (
        "Last train loss Last test loss" in page.text and "test accuracy" not in page.text.lower()
    )
    assert "0.1 0.2 0.3 ✓ Completed" in page.text and "0.4 0.4 0.6 ✓ Completed" in page.text
    assert (
        "There is no validation split to choose by." in page.text
        and "Test loss of 2 points" in page.text
    )


def test_shows_pictures_beside_their_masks(masks: RunDir) -> None:
    page = Page(write(masks))
    for said in (
        "81.00% test accuracy",
        "Mean IoU 43.21%",
        "sky road",
        "Picture",
        "Truth",
        "#3 · 75.0% of its pixels right",
        "1 scene of figures/masks.json cannot be shown: left out.",
        "Samples are pixels that have a class.",
        "cat 1,000 842 84.2% 80.0% dog, 112 times",
        "frog 1,000 1,000 100.0% — —",
    ):
        assert said in page.text, said
    assert (
        page.source.count('width="6" height="4"') == 3 and "background:rgb(128,0,0)" in page.source
    )


@pytest.mark.parametrize(
    "content",
    [
        None,
        3,
        [],
        {},
        {"scenes": 3},
        {"scenes": [1, {}, {"picture": 3}], "classes": [1, {"name": 2}]},
    ],
)
def test_another_file_is_left_out(masks: RunDir, content: Any) -> None:
    write_json(masks.masks, content)
    assert "81.00% test accuracy" in Page(write(masks)).text


def test_words_of_a_file_are_no_markup(masks: RunDir) -> None:
    write_json(
        masks.masks,
        {
            "split": HOSTILE,
            "scenes": [],
            "classes": [
                {"name": HOSTILE, "colour": [1, 2, 3]},
                {"name": "x", "colour": [1, 2, HOSTILE]},
            ],
        },
    )
    assert HOSTILE not in Page(write(masks)).source


def test_a_sweep_of_linear_regressions_tells_what_each_has_learnt(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "runs" / "lines.sweep")
    sweep.path.mkdir(parents=True)
    record(sweep, [point(f"lines-0000000{i}", lr=0.1 * i) for i in (1, 2)])
    row = {"split": "test", "loss": 0.3}
    finished(sweep.run("lines-00000001"), [row], None, linear_fit=FIT)
    finished(sweep.run("lines-00000002"), [row], None)
    page = Page(write_sweep(sweep))
    assert (
        "Last train loss Last test loss Learnt w Learnt b" in page.text
        and "Norm of w" not in page.text
    )
    assert (
        "0.1 — 0.3 1.9994, -3.4001 4.1987 ✓ Completed" in page.text
        and "0.2 — 0.3 — — ✓ Completed" in page.text
    )
    assert "Learnt w, true: 2, -3.4. Learnt b, true: 4.2." in page.text
    change(
        sweep.run("lines-00000001").outcome,
        extra={"linear_fit": {**FIT, "w": [0.1] * 200, "true_w": [0.01] * 200}},
    )
    page = Page(write_sweep(sweep))
    assert (
        "Last test loss Norm of w Learnt b" in page.text and "0.1 — 0.3 3.94 4.1987 ✓" in page.text
    )
    assert (
        "Norm of w, of 200 weights. Learnt b, true: 4.2." in page.text
        and "0.01, 0.01" not in page.text
    )


def test_the_result_in_one_line() -> None:
    def line(test_accuracy: float | None, **extra: Any) -> str:
        end = Outcome(
            "completed",
            "completed",
            "local-1",
            "trainer rank 0",
            20,
            test_accuracy=test_accuracy,
            extra=extra,
        )
        return result_line(end)

    assert (
        line(0.81, test_mean_iou=0.4321)
        == "completed: test accuracy 81.00 %, mean IoU 43.21 % after 20 steps"
    )
    assert line(None, test_loss=9.7123e-05) == "completed: test loss 9.712e-5 after 20 steps"
