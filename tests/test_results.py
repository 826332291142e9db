"""`batchyard results`: printed figures beside ours, over the seeds of a job's runs; what is not
comparable, and why.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import pytest

from launch.cli import results as cli
from launch.results import compare, measurements
from launch.results import results_page as pages
from launch.results.compare import Row
from launch.spec import load
from launch.spec.job import Job
from tests.cli import Shell, outcome
from tests.test_report import HOSTILE, Page, eval_row, lines, start, train_row
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig

DIGITS = """
train:
  epochs: 2
  global_batch_size: 64
  data: {name: digits}
  model: {name: mlp, hidden: [16]}
  optimizer: {name: sgd, lr: 0.1}
resources: {cpus_per_task: 1}
tracking: {mode: disabled}
execution: {log_every_steps: 10}
"""
PRINTED = "published: [{source: a book, test_accuracy: 0.6}]\n"
PIPE = (("COLUMNS", "0"),)  # no width to fold to, whatever the one that the tests run in


def job(folder: Path, text: str, name: str = "lines") -> Job:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return Job(name, path)


def add(
    runs: Path,
    of: Job,
    rows: list[dict[str, Any]],
    *settings: str,
    status: Any = "completed",
    without_gpu: bool = False,
    point: int = 0,
    name: str = "",
    world_size: int = 1,
    data: dict[str, Any] | None = None,
    **execution: Any,
) -> RunDir:
    """A run of the job as it would be submitted, with those rows."""
    train = load.load_points(of, settings, without_gpu=without_gpu).specs[point].train
    run = RunDir(runs / f"{of.name}-{train.digest()[:8]}{name}")
    how = {"ranks": 1, "threads_per_rank": 1, "device": "cpu", **execution}
    config = RunConfig.model_validate(
        {"job": of.name, "run_id": run.run_id, "train": train, "execution": how}
    )
    write_json(run.config, config.model_dump(mode="json"))
    write_json(run.data_record, data or {})
    lines(run.metrics, rows)
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0, world_size=world_size)
    verdict: Any = {"completed": "completed", "stopped": "timeout", "failed": "nan"}[status]
    end = Outcome(status, verdict, "local-1", "trainer rank 0", rows[-1]["global_step"])
    end.write(run.attempt("local-1").outcome)
    end.write(run.outcome)
    return run


def cpu_name() -> str:
    """By lscpu, which is none of ours."""
    told = subprocess.run(
        ["lscpu"], capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout
    return re.search(r"^Model name: *(.+)$", told, re.MULTILINE)[1].strip()  # type: ignore[index]


def rows_of(of: Job, runs: Path) -> list[Row]:
    found, unread = measurements.read_runs(runs)
    assert not unread
    return compare.rows(of, found)


def row_of(of: Job, runs: Path) -> Row:
    (row,) = rows_of(of, runs)
    return row


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.mark.long
def test_real_runs_of_two_seeds_from_the_file_to_the_page(tmp_path: Path, runs: Path) -> None:
    of = job(
        tmp_path,
        DIGITS + PRINTED.replace("0.6}", "0.6, train_loss: 0.001, class_accuracy: {'0': 0.5}}"),
        "small",
    )
    shell = Shell(runs)
    for seed in (0, 1):
        shell.run("submit", str(of.path), "--set", f"train.seed={seed}")
    shell.run(
        "submit",
        str(of.path),
        "--set",
        "train.seed=2",
        "--set",
        "execution.stop_after_step=30",
        code=75,
    )
    ended = [
        outcome(run)
        for run in map(RunDir, runs.glob("small-*"))
        if outcome(run).status == "completed"
    ]
    ours = [end.test_accuracy or 0.0 for end in ended]
    assert len(ours) == 2 and min(ours) > 0.6

    said = json.loads(shell.run("results", str(of.path), "--json"))
    by_figure = {row["figure"]: row for row in said}
    accuracy, loss = by_figure["test accuracy"], by_figure["train loss"]
    assert sorted(accuracy["values"]) == sorted(ours) and accuracy["seeds"] == [0, 1]
    assert (accuracy["mean"], accuracy["deviation"]) == pytest.approx((mean(ours), stdev(ours)))
    cpu = f"1 thread of {cpu_name()}"
    assert (accuracy["verdict"], accuracy["epochs"], accuracy["hardware"]) == ("reached", "2", cpu)
    assert accuracy["notes"] == ["1 more seed stopped"] and Path(accuracy["job_file"]) == of.path
    assert loss["verdict"] == "falls short" and by_figure["test accuracy of 0"]["values"] != [
        None,
        None,
    ]

    head, heading, *table = shell.run("results", str(of.path)).splitlines()
    assert head.split() == ["figure", "printed", "ours", "verdict", "notes"]
    assert heading == f"{of.path}: 2 seeds, 2 epochs, {cpu}"
    spread = f"{100 * mean(ours):.2f} ± {100 * stdev(ours):.2f} %"
    assert re.search(rf"test accuracy +60 % +{re.escape(spread)} +reached +1 2$", table[0])
    assert "  1  1 more seed stopped" in table and "  2  a book" in table

    assert shell.run("results", str(of.path), "--html").strip() == str(runs / "results.html")
    page = Page(runs / "results.html")
    assert spread in page.text and "2 reached, 1 falls short" in page.text
    assert (
        f"2 seeds, 2 epochs, {cpu}" in page.text
        and len(page.all("tr", "group")) == 1
        and len(page.all("li")) == 2
    )
    links = [a["href"] or "" for a in page.all("a")]
    assert f"../{of.path.name}" in links and all((runs / link).exists() for link in links)


@pytest.mark.parametrize(
    ("ours", "printed", "verdict", "remarks"),
    [
        # what rounds to the printed digits reaches them
        ([0.8226, 0.8226], "test_accuracy: 0.823", "reached", []),
        ([0.8224, 0.8224], "test_accuracy: 0.823", "falls short", ["by 0.06 points"]),
        (
            [0.7, 0.8],
            "test_accuracy: 0.76",
            "falls short",
            ["by 1.00 points, within the deviation"],
        ),
        ([0.75], "test_accuracy: 0.76, tolerance: 0.01", "reached", []),
        ([0.92], "test_error: 0.07", "falls short", ["by 1.00 points"]),
        ([0.94], "test_error: 0.07", "reached", []),
    ],
)
def test_when_a_figure_is_reached(
    tmp_path: Path, runs: Path, ours: list[float], printed: str, verdict: str, remarks: list[str]
) -> None:
    of = job(tmp_path, DIGITS + f"published: [{{source: a book, {printed}}}]\n")
    for seed, accuracy in enumerate(ours):
        add(runs, of, [eval_row(40, accuracy)], f"train.seed={seed}")
    row = row_of(of, runs)
    assert (row.verdict, row.remarks) == (verdict, remarks)


def test_the_hardware_is_that_of_the_newest_attempt_by_its_name(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    on_gpu = add(runs, of, [eval_row(40, 0.7)], device="cuda", world_size=8)
    start(on_gpu, "docker-2", 1_760_000_100.0, 1_760_000_160.0, world_size=2)
    Outcome("completed", "completed", "docker-2", "trainer rank 0", 40).write(
        on_gpu.attempt("docker-2").outcome
    )
    write_json(
        on_gpu.attempt("local-1").hardware, {"device": "cuda", "name": "NVIDIA A100-SXM4-40GB"}
    )
    assert row_of(of, runs).hardware == "2 GPUs"  # the newest one names none
    write_json(
        on_gpu.attempt("docker-2").hardware, {"device": "cuda", "name": "NVIDIA H100 80GB HBM3"}
    )
    add(runs, of, [eval_row(40, 0.7)], "train.seed=1", world_size=2, threads_per_rank=3)
    assert row_of(of, runs).hardware == "2 x NVIDIA H100 80GB HBM3, 2 x 3 threads"


def test_another_configuration_is_another_experiment(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(runs, of, [eval_row(40, 0.7)], "train.optimizer.lr=0.2")
    assert (row_of(of, runs).verdict, row_of(of, runs).values) == ("not measured", [])
    add(runs, of, [eval_row(40, 0.7)], "execution.log_every_steps=3")
    assert row_of(of, runs).values == [0.7]


def test_of_two_runs_of_a_seed_the_newest_counts(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(runs, of, [eval_row(40, 0.7)])
    add(runs, of, [eval_row(40, 0.8)], name=".2")
    add(runs, of, [eval_row(20, 0.1)], name=".3", status="failed")
    assert row_of(of, runs).values == [0.8]


def test_what_was_not_run_in_full_is_told_apart(tmp_path: Path, runs: Path) -> None:
    fallback = (
        "resources: {gpus_per_node: 1}\nfallback: {train: {epochs: 1}, resources: {gpus_per_node:"
        " 0}}\n"
    )
    of = job(tmp_path, DIGITS.replace("resources: {cpus_per_task: 1}\n", fallback) + PRINTED)
    add(runs, of, [eval_row(20, 0.5, epoch=1)], "train.epochs=1", "train.max_steps=3")
    row = row_of(of, runs)  # neither the job nor its fallback, but the nearest that there is
    assert (row.verdict, row.why, row.epochs) == ("not comparable", ["cut short"], "1")

    add(runs, of, [eval_row(20, 0.9, epoch=1)], without_gpu=True)
    row = row_of(of, runs)
    assert (row.verdict, row.why, row.values) == (
        "not comparable",
        ["its fallback, not in full"],
        [0.9],
    )

    add(runs, of, [eval_row(40, 0.95)], device="cuda", world_size=8)
    whole, without_gpu = rows_of(of, runs)
    # a record that names none
    assert (whole.verdict, whole.values, whole.hardware) == ("reached", [0.95], "8 GPUs")
    assert (without_gpu.verdict, without_gpu.values) == ("not comparable", [0.9])


def test_a_run_that_stopped_stands_alone_where_none_is_completed(
    tmp_path: Path, runs: Path
) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(runs, of, [eval_row(20, 0.9, epoch=1)], status="stopped")
    row = row_of(of, runs)
    assert (row.verdict, row.why, row.epochs) == (
        "not comparable",
        ["stopped before its end"],
        "1 of 2",
    )
    early = add(runs, of, [eval_row(40, 0.7)], "train.seed=1")
    Outcome(
        "completed", "completed", "local-1", "trainer rank 0", 40, extra={"early_stopped": True}
    ).write(early.outcome)
    row = row_of(of, runs)
    assert (row.values, row.why, row.notes) == (
        [0.7],
        ["stopped early by its validation"],
        ["1 more seed stopped"],
    )


def test_stand_ins_are_never_like_for_like(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(
        runs,
        of,
        [eval_row(40, 0.9)],
        data={"sha256": "5a", "unverified": ["a", "b"]},
        allow_unverified_data=True,
    )
    row = row_of(of, runs)
    assert (
        row.why == ["stand-in: 2 files of the data not as published"]
        and row.to_json()["reaches"] is True
    )
    assert row.remarks[0] == "reached"
    add(
        runs,
        of,
        [eval_row(40, 0.5)],
        name=".2",
        data={"sha256": "5a", "unverified": ["a"]},
        allow_unverified_data=True,
    )
    row = row_of(of, runs)
    assert row.remarks == ["short by 10.00 points", "stand-in: 1 file of the data not as published"]
    assert row.to_json()["reaches"] is False and row.verdict == "not comparable"
    of = job(
        tmp_path, DIGITS + PRINTED.replace("0.6}", "0.6, stand_in: digits for letters}"), "letters"
    )
    assert (row_of(of, runs).verdict, row_of(of, runs).why[0]) == (
        "not comparable",
        "stand-in: digits for letters",
    )


def test_data_that_were_allowed_to_differ_and_do_not_are_no_stand_in(
    tmp_path: Path, runs: Path
) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(
        runs,
        of,
        [eval_row(40, 0.9)],
        data={"sha256": "5a", "unverified": []},
        allow_unverified_data=True,
    )
    assert row_of(of, runs).verdict == "reached"


def test_an_older_record_is_proven_by_another_runs_data(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED)
    add(runs, of, [eval_row(40, 0.9)], data={"sha256": "5a"}, allow_unverified_data=True)
    add(
        runs,
        of,
        [eval_row(40, 0.9)],
        "train.optimizer.lr=0.2",
        data={"sha256": "5b", "unverified": []},
    )
    unverified = {"sha256": "5a", "unverified": ["a"]}
    add(
        runs,
        of,
        [eval_row(40, 0.9)],
        "train.optimizer.lr=0.3",
        data=unverified,
        allow_unverified_data=True,
    )
    assert row_of(of, runs).why == ["stand-in: data that may differ from the published checksums"]
    # it was not allowed to differ
    add(runs, of, [eval_row(40, 0.9)], "train.optimizer.lr=0.4", data={"sha256": "5a"})
    assert row_of(of, runs).verdict == "reached"


def test_points_of_a_sweep_have_their_own_figures(tmp_path: Path, runs: Path) -> None:
    of = job(
        tmp_path,
        DIGITS
        + "sweep: {grid: {train.optimizer.lr: [0.1, 0.2], train.seed: [0, 1]}}\npublished:\n  -"
        " {source: a book, at: {train.optimizer.lr: 0.2, train.seed: 0}, test_accuracy: 0.6}\n",
    )
    for point, accuracy in enumerate((0.1, 0.2, 0.7, 0.8)):
        add(runs, of, [eval_row(40, accuracy)], point=point)
    row = row_of(of, runs)
    assert (row.point, row.label, row.values) == ("train.optimizer.lr=0.2", "lr 0.2", [0.7, 0.8])


def test_ours_are_told_where_nobody_prints_a_figure(tmp_path: Path, runs: Path) -> None:
    optimizers = (
        "sweep: {grid: {train.optimizer: [{name: sgd, lr: 0.1}, {name: adam, lr: 0.01}],"
        " train.seed: [0, 1]}}\n"
    )
    of = job(tmp_path, DIGITS + optimizers)
    assert rows_of(of, runs) == []
    for point, accuracy in enumerate((0.7, 0.8)):
        add(runs, of, [eval_row(40, accuracy)], point=point)
    row = row_of(of, runs)
    assert (row.figure, row.label, row.values) == (
        "test accuracy",
        "optimizer sgd, lr 0.1",
        [0.7, 0.8],
    )
    assert (row.verdict, row.remarks, row.to_json()["reaches"]) == ("none printed", [], None)
    page = Page(pages.write([row], runs))
    assert (
        "75.00 ± 7.07 %" in page.text
        and "none printed" in page.text
        and "test accuracy, optimizer sgd, lr 0.1" in page.text
    )
    told = Shell(runs, env=PIPE).run("results", str(of.path)).splitlines()
    assert re.fullmatch(
        r"  test accuracy, optimizer sgd, lr 0\.1 +— +75\.00 ± 7\.07 % +none printed", told[2]
    )


def test_a_search_has_no_rows(tmp_path: Path, runs: Path) -> None:
    search = "sweep: {search: {trials: 2, ranges: {train.optimizer.lr: {low: 0.1, high: 0.2}}}}\n"
    of = job(tmp_path, DIGITS.replace("{name: digits}", "{name: digits, validation: 0.1}") + search)
    add(runs, of, [eval_row(40, 0.7)])
    assert rows_of(of, runs) == []


def test_the_table_folds_to_the_terminal(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + PRINTED.replace("0.6", "0.76"))
    for seed, accuracy in enumerate((0.7, 0.8)):
        add(runs, of, [eval_row(40, accuracy)], f"train.seed={seed}")
    wide = Shell(runs, env=PIPE).run("results", str(of.path)).splitlines()
    assert "falls short by 1.00 points, within the deviation" in wide[2]
    narrow = Shell(runs, env=(("COLUMNS", "70"),)).run("results", str(of.path)).splitlines()
    (row,) = (i for i, line in enumerate(narrow) if "test accuracy" in line)
    assert max(map(len, narrow[row : row + 3])) <= 70
    assert re.sub(r"\s+", " ", " ".join(narrow[row : row + 3])).startswith(
        " test accuracy 76 % 75.00 ± 7.07 % falls short by"
    )
    assert "within the" in " ".join(narrow[row + 1 : row + 3])


def test_a_job_that_extends_another_does_not_have_its_figures(tmp_path: Path, runs: Path) -> None:
    first = job(tmp_path, DIGITS + PRINTED, "first")
    assert len(rows_of(first, runs)) == 1
    assert rows_of(job(tmp_path, "extends: first\ntrain: {epochs: 3}\n"), runs) == []
    assert (
        row_of(job(tmp_path, f"extends: first\n{PRINTED.replace('0.6', '0.7')}"), runs).published
        == 0.7
    )


def test_seeds_of_a_sweep_are_one_row(tmp_path: Path, runs: Path) -> None:
    of = job(tmp_path, DIGITS + "sweep: {grid: {train.seed: [3, 1]}}\n" + PRINTED)
    for point, accuracy in enumerate((0.7, 0.8)):
        add(runs, of, [eval_row(40, accuracy)], point=point)
    row = row_of(of, runs)
    assert (row.point, row.seeds, row.values) == ("", [1, 3], [0.8, 0.7])


def test_weights_of_a_job_are_those_of_its_run(tmp_path: Path, runs: Path) -> None:
    job(tmp_path, DIGITS, "first")
    of = job(tmp_path, DIGITS.replace("  epochs", "  weights: {run: first}\n  epochs") + PRINTED)
    add(runs, of, [eval_row(40, 0.7)], "train.weights.run=first-01234567.2")
    add(runs, of, [eval_row(40, 0.9)], "train.weights.run=other-01234567", "train.seed=1")
    assert row_of(of, runs).values == [0.7]


def test_where_each_figure_comes_from(tmp_path: Path, runs: Path) -> None:
    of = job(
        tmp_path,
        DIGITS + "published:\n  - {source: a book, epoch: 1, train_loss: 2.0, train_accuracy: 0.5,"
        " test_loss: 0.3, test_accuracy: 0.5}\n  - {source: a book, loss_book: 0.1,"
        " loss_book_running: 0.2}\n  - {source: a book, train_error: 0.5, highest_test_accuracy:"
        " 0.9, class_accuracy: {a: 0.5, b: 0.5, z: 0.5}}\n",
    )
    run = add(
        runs,
        of,
        [
            train_row(10, 3.0, samples=30),
            train_row(20, 1.0, samples=10),
            eval_row(20, 0.8, epoch=1),
            train_row(40, 0.5, epoch=2, accuracy=0.75),
            eval_row(40, 0.7),
        ],
    )
    write_json(
        run.evaluation("test"), {"classes": ["a", "b"], "samples": [4, 0], "correct": [3, 0]}
    )
    found = {row.figure: row.values for row in rows_of(of, runs)}
    assert found == {
        "loss book": [0.5 * 20 / 96],
        "loss book running": [0.25],  # 20 steps of the second epoch
        "train loss, epoch 1": [2.5],
        "train accuracy, epoch 1": [0.5],
        "test loss, epoch 1": [0.3],
        "test accuracy, epoch 1": [0.8],
        "train error": [0.25],
        "highest test accuracy": [0.8],
        "test accuracy of a": [0.75],
        "test accuracy of b": [],
        "test accuracy of z": [],
    }


def test_numbers_and_masks(tmp_path: Path, runs: Path) -> None:
    numbers = DIGITS.replace(
        "name: digits",
        "name: linear, features: 1, w: [2.0], b: 1.0, train_samples: 9, test_samples: 9",
    )
    of = job(
        tmp_path,
        numbers.replace("hidden: [16]", "hidden: []")
        + "published: [{source: a book, train_loss: 2.0e-4}]\n",
    )
    end = {"kind": "eval", "global_step": 2, "epoch": 2}
    rows = [
        train_row(2, 5.0, epoch=2),
        {**end, "split": "train", "loss": 1e-4},
        {**end, "split": "test", "loss": 1.0},
    ]
    add(runs, of, rows)
    row = row_of(of, runs)
    assert (row.values, row.shown(row.published), row.verdict, row.tolerance) == (
        [1e-4],
        "0.0002",
        "reached",
        pytest.approx(5e-5),
    )

    masks = DIGITS.replace("name: digits", "name: voc").replace(
        "name: mlp, hidden: [16]", "name: fcn"
    )
    of = job(
        tmp_path,
        masks + "published: [{source: a book, pixel_accuracy: 0.848, mean_iou: 0.5}]\n",
        "masks",
    )
    add(runs, of, [eval_row(40, 0.85, mean_iou=0.4)])
    assert [(row.figure, row.values, row.verdict) for row in rows_of(of, runs)] == [
        ("pixel accuracy", [0.85], "reached"),
        ("mean IoU", [0.4], "falls short"),
    ]


def test_a_cpu_without_bf16_runs_the_same_job(tmp_path: Path, runs: Path) -> None:
    of = job(
        tmp_path, DIGITS.replace("  epochs: 2\n", "  epochs: 2\n  precision: bf16\n") + PRINTED
    )
    add(runs, of, [eval_row(40, 0.7)], "train.precision=fp32")
    assert row_of(of, runs).verdict == "reached"


def test_mistakes_and_jobs_without_a_figure_are_told_beside_the_others(
    tmp_path: Path, runs: Path
) -> None:
    good, bad = (
        job(tmp_path, DIGITS + PRINTED),
        job(tmp_path, DIGITS + PRINTED.replace("source", "sauce"), "bad"),
    )
    add(runs, good, [eval_row(40, 0.7)])
    (runs / "old-01234567").mkdir()
    (runs / "old-01234567" / "config.json").write_text('{"job": "old"}')
    none = job(tmp_path, DIGITS.replace("[16]", "[17]"), "none")
    said = Shell(runs).run("results", *(str(j.path) for j in (bad, good, none)), code=2)
    assert "70.00 %" in said and "unknown key; did you mean 'source'?" in said
    assert "no printed figure (`published` in the job's file), and no run: none" in said
    assert (
        "old-01234567 is left out; unreadable: config.json: is no configuration of this version: "
        in said
    )
    assert "choose one" in Shell(runs).run("results", "--html", "--json", code=2)


def test_the_page_stands_alone_and_escapes_every_value(tmp_path: Path, runs: Path) -> None:
    of = job(
        tmp_path, DIGITS + f"published: [{{source: {json.dumps(HOSTILE)}, test_accuracy: 0.6}}]\n"
    )
    add(runs, of, [eval_row(40, 0.5)])
    page = Page(pages.write(rows_of(of, runs), runs))
    assert len(page.all("span", "bad")) == 1
    assert (
        "<script" not in page.source
        and "<img" not in page.source
        and HOSTILE.split("<style")[0] in page.text.replace("  ", " ")
    )
    assert "default-src 'none'" in (page.all("meta")[1]["content"] or "")
    assert "No job of these has a printed figure." in Page(pages.write([], runs)).text


def test_every_figure_of_the_project_is_compared(runs: Path) -> None:
    found = [row for of in load.find_all(Path(__file__).parents[1]) for row in compare.rows(of, {})]
    assert {"resnet_cifar", "blitz_cifar", "fashion_lenet", "optimizers_airfoil", "voc_fcn"} <= {
        row.job for row in found
    }
    assert all(row.verdict == "not measured" for row in found)
    stand_ins = {row.job: row.source for row in found if row.job.endswith(("_made", "_camvid"))}
    # the book's figures are of NASA's table
    assert "Dive" not in stand_ins["optimizers_airfoil_made"]


def test_the_colours_of_the_table(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = []
    for name, accuracy, execution in (
        ("good", 0.7, False),
        ("short", 0.5, False),
        ("other", 0.5, True),
    ):
        of = job(tmp_path, DIGITS.replace("16", f"{10 + len(name)}") + PRINTED, name)
        add(runs / name, of, [eval_row(40, accuracy)], allow_unverified_data=execution)
        rows += rows_of(of, runs / name)
    with click.Context(cli.results_, color=True):
        cli.show(rows)
    printed = [line for line in capsys.readouterr().out.splitlines() if "test accuracy" in line]
    green, red, yellow = (f"\x1b[{number}m" for number in (32, 31, 33))
    for line, colour, value in zip(
        printed, (green, red, yellow), ("70.00 %", "50.00 %", "50.00 %"), strict=True
    ):
        assert f"{colour}{value}" in line and line.count(colour) == 2
