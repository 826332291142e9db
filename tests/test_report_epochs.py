"""The report epoch by epoch: the table that PyTorch's tutorial prints, and errors; and rows that
are not as they should be.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launch.report import write
from tests.test_report import (
    HOSTILE,
    Page,
    configure,
    eval_row,
    lines,
    start,
    timing_row,
    train_row,
)
from trainer.config.files.layout import RunDir

# PyTorch's tutorial Training a Classifier prints them at every 2,000 of an epoch's 12,500 steps of
# 4 pictures.
PRINTED = [
    [2.219, 1.978, 1.754, 1.600, 1.517, 1.469],
    [1.405, 1.363, 1.356, 1.323, 1.293, 1.280],
    [1.234, 1.228, 1.204, 1.186, 1.179, 1.183],
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "digits-1a2b3c4d")
    run.path.mkdir(parents=True)
    configure(run)
    return run


def tutorial() -> list[dict[str, Any]]:
    """The tutorial's rows, and what it does not print: the last 500 steps of an epoch."""
    rows = []
    for i, losses in enumerate(PRINTED):
        place: dict[str, Any] = {"epoch": i + 1, "accuracy": 0.2 * (i + 1)}
        rows += [
            train_row(12_500 * i + 2000 * (k + 1), loss, samples=8000, **place)
            for k, loss in enumerate(losses)
        ]
        rows += [train_row(12_500 * (i + 1), 1.0, samples=2000, **place)]
        rows += [eval_row(12_500 * (i + 1), 0.25 * (i + 1), epoch=i + 1)]
    return rows


def section(run: RunDir) -> str:
    found = re.search(
        r" Epochs (Error|Mean) .*?(?= (By class|Pictures|Speed) )", Page(write(run)).text
    )
    return found[0] if found else ""


def test_the_tutorials_table(run: RunDir) -> None:
    lines(run.metrics, tutorial())
    found = section(run)
    assert (
        "Epoch 2,000 4,000 6,000 8,000 10,000 12,000 12,500 Whole epoch Accuracy 1 2.219 " in found
    )
    for epoch, losses in enumerate(PRINTED, start=1):
        whole = (sum(losses) * 8000 + 2000) / 50_000
        assert (
            f" {epoch} {' '.join(f'{v:.3f}' for v in losses)} 1.000 {whole:.3f} {epoch * 20}.00%"
            in found
        )
    assert (
        "of the 2,000 steps that end at the heading's; in the last column of the 500 steps that the"
        " epoch has left." in found
    )
    assert "Time" not in found


def test_a_line_an_epoch_and_errors(run: RunDir) -> None:
    lines(run.metrics, tutorial())
    page = Page(write(run))
    assert "train: 80.0% at epoch 1, 40.0% at epoch 3; lowest 40.0%" in page.text
    assert "test: 75.0% at epoch 1, 25.0% at epoch 3; lowest 25.0%" in page.text
    assert (
        "epoch 3: 1.23 at step 2,000, 1 at step 12,500; lowest 1, highest 1.23, 7 values."
        in page.text
    )
    assert (
        "Error by epoch over epoch" in page.text
        and "Train loss within an epoch over step of the epoch" in page.text
    )
    assert re.findall(r'<g class="(c\d)">', page.source) == ["c0", "c1", "c2"]


def test_more_rows_are_put_together_by_their_samples(run: RunDir) -> None:
    rows = [
        train_row(25 * epoch + s, s * epoch + 0.0, epoch=epoch + 1, samples=96 if s < 25 else 32)
        for epoch in range(2)
        for s in range(1, 26)
    ]
    lines(run.metrics, rows)
    found = section(run)
    assert "Epoch 3 6 9 12 15 18 21 24 25 Whole epoch" in found
    whole = (sum(range(1, 25)) * 96 + 25 * 32) / (24 * 96 + 32)
    assert f" 2 2.000 5.000 8.000 11.000 14.000 17.000 20.000 23.000 25.000 {whole:.3f}" in found
    assert (
        "of the 3 steps that end at the heading's; in the last column of the 1 step that the epoch"
        " has left." in found
    )


def test_many_epochs_are_folded_and_five_are_drawn(run: RunDir) -> None:
    lines(
        run.metrics,
        [train_row(2 * e - 1 + k, 1 / e, epoch=e) for e in range(1, 301) for k in (0, 1)],
    )
    page = Page(write(run))
    assert "Mean train loss by epoch and step of the epoch (the last 200 of 300)" in page.text
    assert (
        "Accuracy 101 0.0099 0.0099 0.0099 50.00%" in page.text
        and " 300 0.00333 0.00333 0.00333 50.00%" in page.text
    )
    assert re.findall(r"epoch (\d+): [\d.e-]+ at step 1,", page.text) == [
        "1",
        "75",
        "150",
        "225",
        "300",
    ]


def test_numbers_have_no_errors_and_small_losses(run: RunDir) -> None:
    rows = [train_row(10 * e, 9.12e-5 / e, epoch=e) for e in (1, 2)]
    lines(run.metrics, [{k: v for k, v in row.items() if k != "accuracy"} for row in rows])
    found = section(run)
    assert "Epoch Whole epoch 1 9.12e-5 2 4.56e-5" in found and "Error" not in found
    assert "Means over the epoch's samples, as they trained." in found


def test_the_time_of_an_epoch_in_which_no_attempt_took_over(run: RunDir) -> None:
    lines(
        run.metrics,
        [train_row(s, 1.0, epoch=1 + (s > 20) + (s > 40), samples=1000) for s in range(10, 61, 10)],
    )
    start(run, "local-1", 1.0, 2.0)
    start(run, "local-2", 3.0, 4.0)
    timed = [
        timing_row("local-1", 10, images_per_s=500.0),
        timing_row("local-1", 20, images_per_s=250.0),
    ]
    timed += [
        timing_row("local-1", 30),
        timing_row("local-2", 30),
        timing_row("local-2", 40),
        timing_row("local-2", 50),
    ]
    lines(run.timing, timed)
    found = section(run)
    assert (
        "1 1.000 1.000 1.000 50.00% 6.0 s 2 1.000 1.000 1.000 50.00% — 3 1.000 1.000 1.000 50.00% —"
        in found
    )
    assert "Time: without evaluations." in found


def test_one_row_an_epoch_and_one_epoch(run: RunDir) -> None:
    lines(run.metrics, [train_row(10, 1.0)])
    assert section(run) == ""
    lines(run.metrics, [train_row(10, 1.0), train_row(20, 0.5)])
    assert "Epoch 10 20 Whole epoch Accuracy 1 1.000 0.500 0.750 50.00%" in section(run)
    lines(run.metrics, [train_row(10, 1.0), train_row(20, 0.5, epoch=2)])
    assert "Epoch Whole epoch Accuracy 1 1.000 50.00% 2 0.500 50.00%" in section(run)
    assert "within an epoch" not in section(run)


@pytest.mark.parametrize(
    "odd",
    [
        {"epoch": HOSTILE},
        {"epoch": None},
        {"epoch": 1e250},
        {"epoch": -1},
        {"epoch": 10**400},
        {"samples": HOSTILE},
        {"samples": 0},
        {"samples": -96},
        {"loss": HOSTILE},
        {"loss": True},
        {"global_step": 1e250},
        {"global_step": 0},
        {"global_step": 1e-250},
    ],
)
def test_an_odd_row_is_left_out(run: RunDir, odd: dict[str, Any]) -> None:
    lines(run.metrics, [train_row(10, 1.0), {**train_row(15, 7.0), **odd}, train_row(20, 0.5)])
    assert "Epoch 10 20 Whole epoch Accuracy 1 1.000 0.500 0.750 50.00%" in section(run)


@pytest.mark.parametrize(
    "odd",
    [
        {"loss": float("nan")},
        {"loss": float("inf")},
        {"loss": 10**400},
        {"samples": 1e299, "loss": 1e299},
        {"accuracy": HOSTILE},
        {"accuracy": 1e250},
    ],
)
def test_an_odd_value_stays_in_its_cell(run: RunDir, odd: dict[str, Any]) -> None:
    lines(
        run.metrics,
        [train_row(10, 1.0), {**train_row(15, 7.0, epoch=2), **odd}, train_row(20, 0.5, epoch=3)],
    )
    speeds: list[dict[str, Any]] = [
        {"images_per_s": 0},
        {"images_per_s": HOSTILE},
        {"global_step": []},
        {"global_step": HOSTILE},
    ]
    lines(
        run.timing, [timing_row("local-1", 10 + 5 * i, **speed) for i, speed in enumerate(speeds)]
    )
    start(run, "local-1", 1.0)
    found = section(run)
    assert (
        " 1 1.000 50.00% 2 " in found
        and " 3 0.500 50.00%" in found
        and "<script" not in write(run).read_text()
    )


def test_rows_at_steps_of_the_run_make_no_columns_of_steps_of_the_epoch(run: RunDir) -> None:
    """An older trainer's: an epoch has 6 steps, a row came each 4 of the run, so epochs have no two
    means over the same steps.
    """
    rows = [(4, 1), (6, 1), (8, 2), (12, 2)]
    lines(
        run.metrics,
        [train_row(step, 2.0, samples=8, epoch=epoch, accuracy=0.5) for step, epoch in rows],
    )
    found = section(run)
    assert (
        "Mean train loss by epoch Means over the epoch's samples" in found
        and "Epoch Whole epoch Accuracy" in found
    )
