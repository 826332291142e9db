"""The sweep's page: what it says of its points, what the best was chosen by, and that fifty curves
stay a picture.
"""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest

from launch.report import sweep_charts, sweep_data, write, write_sweep
from tests.test_report import HOSTILE, Page, configure, eval_row, lines, start, train_row
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import SweepDir
from trainer.config.files.lock import me
from trainer.config.files.outcome import Outcome

LR, SEED, WIDTH = "train.optimizer.lr", "train.seed", "train.model.width"


def add(
    sweep: SweepDir,
    run_id: str,
    accuracy: float | None,
    status: Any = "completed",
    *,
    best: dict[str, Any] | None = None,
    loss: float = 2.3,
    **more: Any,
) -> None:
    """A run of 200 steps that ended so."""
    run = sweep.run(run_id)
    configure(run, job="lrs")
    slope = (accuracy or 0.1) / 50
    rows: list[dict[str, Any]] = [
        train_row(s, loss * math.exp(-slope * s)) for s in range(10, 201, 10)
    ]
    for s in (50, 100, 150, 200):
        rows.append(eval_row(s, (accuracy or 0.1) * s / 200))
        if best:
            rows.append(eval_row(s, best["value"] * s / 200, split="val"))
    lines(run.metrics, sorted(rows, key=lambda r: r["global_step"]))
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0)
    verdict = more.pop(
        "verdict", {"completed": "completed", "stopped": "cancelled", "failed": "nan"}[status]
    )
    extra = (
        {
            "best": {
                "split": "val",
                "metric": "accuracy",
                "global_step": 150,
                "test_accuracy": 0.5,
                **best,
            }
        }
        if best
        else {}
    )
    end = Outcome(
        status,
        verdict,
        "local-1",
        "trainer rank 0",
        200,
        test_accuracy=accuracy,
        extra=extra,
        **more,
    )
    end.write(run.attempt("local-1").outcome)
    end.write(run.outcome)
    write(run)


def record(sweep: SweepDir, *submits: list[dict[str, Any]]) -> None:
    found = [
        {"started": 1_760_000_000.0 + i, "backend": "local", "settings": [], "points": p}
        for i, p in enumerate(submits)
    ]
    write_json(sweep.record, {"job": "lrs", "submits": found})
    sweep.job.write_text("train:\n  epochs: 30\n")


def point(run_id: str, **axes: Any) -> dict[str, Any]:
    return {
        "axes": {LR: axes["lr"], **({SEED: axes["seed"]} if "seed" in axes else {})},
        "run_id": run_id,
    }


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    """Two rates and two seeds: three completed, one failed."""
    sweep = SweepDir(tmp_path / "runs" / "lrs.sweep")
    record(
        sweep,
        [
            point("lrs-00000001", lr=0.1, seed=0),
            point("lrs-00000002", lr=0.1, seed=1),
            point("lrs-00000003", lr=0.4, seed=0),
            point("lrs-00000004", lr=0.4, seed=1),
        ],
    )
    add(sweep, "lrs-00000001", 0.90)
    add(sweep, "lrs-00000002", 0.94)
    add(sweep, "lrs-00000003", 0.97)
    add(
        sweep,
        "lrs-00000004",
        0.2,
        "failed",
        cause="the gradient of step 9 is not finite",
        hint="lower the rate",
    )
    return sweep


def test_names_the_best_point_and_says_that_the_test_set_chose_it(sweep: SweepDir) -> None:
    page = Page(write_sweep(sweep))
    for said in (
        (
            "Batchyard sweep lrs lrs.sweep 97.00% test accuracy of the best point, chosen by it, on"
            " the test set"
        ),
        "✕ 3 of 4 points completed, 1 failed",
        "1 point failed: the gradient of step 9 is not finite; to try: lower the rate",
        (
            "lr 0.4, seed 0 ( lrs-00000003 ) Chosen by the last test accuracy, 97.00%. This is a"
            " choice on the test set"
        ),
        "0.4 0 97.00% ✓ Completed 200 1 min 00 s lrs-00000003 0.1 1 94.00% ✓ Completed",
        "0.4 1 20.00% ✕ Failed: not finite",
        "batchyard submit lrs.sweep",
    ):
        assert said in page.text, said
    assert "Validation" not in page.text
    # the point, and the mean over its seeds
    assert [a["class"] for a in page.all("tr", "best")] == ["best", "best"]


def test_chooses_by_validation_where_every_completed_point_has_one(sweep: SweepDir) -> None:
    for i, (value, there) in enumerate(((0.91, 0.89), (0.95, 0.93), (0.90, 0.97)), 1):
        add(sweep, f"lrs-0000000{i}", 0.9 + i / 100, best={"value": value, "test_accuracy": there})
    page = Page(write_sweep(sweep))
    assert "93.00% test accuracy of the best point, chosen by validation" in page.text
    assert (
        "( lrs-00000002 ) Chosen by the best validation accuracy, 95.00%; its test accuracy there"
        " is 93.00%." in page.text
    )
    assert "choice on the test set" not in page.text
    assert "0.1 2 91.50 ± 0.71 % 93.00 ± 2.83 %" in page.text  # last test, then validation
    assert "by, the best validation accuracy." in page.text

    for i, value in enumerate((0.4, 0.2, 0.3), 1):  # of a loss the lowest
        add(sweep, f"lrs-0000000{i}", 0.9, best={"metric": "loss", "value": value})
    assert (
        "lr 0.1, seed 1 ( lrs-00000002 ) Chosen by the best validation loss, 0.2;"
        in Page(write_sweep(sweep)).text
    )

    add(sweep, "lrs-00000003", 0.97)  # one without: no fair choice
    assert (
        "lr 0.4, seed 0 ( lrs-00000003 ) Chosen by the last test accuracy"
        in Page(write_sweep(sweep)).text
    )


def test_equal_points_are_said_to_be_equal(sweep: SweepDir) -> None:
    add(sweep, "lrs-00000002", 0.97)
    assert (
        "Chosen by the last test accuracy, 97.00% (1 more is as good: the first of them)."
        in Page(write_sweep(sweep)).text
    )


def test_means_over_seeds_are_of_completed_points(sweep: SweepDir) -> None:
    groups = sweep_data.over_seeds(sweep_data.read(sweep).points)
    assert [(g.axes, g.seeds) for g in groups] == [({LR: 0.1}, 2), ({LR: 0.4}, 1)]
    first, second = (g.test_accuracy for g in groups)
    assert first == pytest.approx((0.92, 0.0282842712)) and second == (0.97, None)
    page = Page(write_sweep(sweep))
    assert "0.1 2 92.00 ± 2.83 % 0.4 1 97.00 %" in page.text
    assert (
        "Marked: the best mean of what the best point was chosen by, the last test accuracy."
        in page.text
    )
    record(sweep, [point("lrs-00000001", lr=0.1), point("lrs-00000003", lr=0.4)])
    assert "Over seeds" not in Page(write_sweep(sweep)).text


def test_links_are_relative_and_to_pages_that_are_there(sweep: SweepDir) -> None:
    sweep.run("lrs-00000002").report.unlink()
    page = Page(write_sweep(sweep))
    links = {a["href"] for a in page.all("a")}
    assert links == {f"../lrs-0000000{i}/report.html" for i in (1, 3, 4)}
    assert all((sweep.path / (link or "")).resolve().is_file() for link in links)
    assert {t for t, _ in page.tags} & {
        "script",
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "image",
        "use",
    } == set()
    assert not re.search(r"https?:|@import|url\(| on\w+=", page.source)
    assert "default-src 'none'" in (page.all("meta")[1]["content"] or "")


def test_points_of_every_kind(sweep: SweepDir) -> None:
    record(
        sweep,
        [point("lrs-00000001", lr=0.1, seed=0), point("lrs-0000000a", lr=0.8, seed=0)],
        [
            point("lrs-00000001", lr=0.1, seed=0),
            {**point("lrs-0000000b", lr=0.2, seed=0), "error": "no space left on device"},
            point("lrs-0000000c", lr=0.3, seed=0),
            point("lrs-0000000d", lr=0.3, seed=1),
            point("lrs-00000003", lr=0.4, seed=0),
        ],
    )
    add(sweep, "lrs-0000000c", 0.5, "stopped")
    start(sweep.run("lrs-0000000d"), "local-1", 1_760_000_000.0)
    # of a process that is no more
    write_json(sweep.run("lrs-0000000d").lock, {**me(), "attempt": "local-1", "start": 0})
    page = Page(write_sweep(sweep))
    for said in (
        "2 of 5 points completed, 1 stopped, 1 no outcome, 1 not started",
        "could not start: no space left on device lr 0.2, seed 0",
        "failed without a word; it continues from its last checkpoint lr 0.3, seed 1",
        "0.3 0 50.00% ❚❚ Stopped: cancelled",
        "0.2 0 — ○ Not started — — lrs-0000000b",
        "no longer wanted: lrs-0000000a (lr 0.8, seed 0).",
    ):
        assert said in page.text, said


def test_an_empty_sweep_and_partial_files(sweep: SweepDir) -> None:
    for run_id in ("lrs-00000001", "lrs-00000002"):
        for path in (
            sweep.run(run_id).outcome,
            sweep.run(run_id).metrics,
            sweep.run(run_id).config,
        ):
            path.write_text("{")
    sweep.job.unlink()
    Page(write_sweep(sweep))
    record(sweep, [point("lrs-0000000e", lr=0.1)])
    page = Page(write_sweep(sweep))
    assert "No point is completed yet." in page.text and "No metrics yet." in page.text


def test_escapes_every_value(sweep: SweepDir) -> None:
    axes = {LR: HOSTILE, SEED: [HOSTILE]}
    bad = [{"axes": axes, "run_id": "lrs-00000004", "error": HOSTILE}]
    bad += [{"axes": {LR: HOSTILE + "2"}, "run_id": "lrs-00000001"}]
    bad += [{"axes": axes | {HOSTILE: 1}, "run_id": "x" + HOSTILE.replace("/", "")}]
    submit = {"started": 1.0, "points": bad, "settings": [HOSTILE], "backend": HOSTILE}
    write_json(sweep.record, {"job": HOSTILE, "submits": [submit]})
    sweep.job.write_text(HOSTILE)
    page = Page(write_sweep(sweep))
    assert "<script" not in page.source and "<img" not in page.source
    assert page.text.count("<script>alert(1)</script>") >= 8


def many(folder: Path, rates: int, seeds: int, **best: Any) -> SweepDir:
    sweep = SweepDir(folder / "runs" / "lrs.sweep")
    made = []
    for i, seed in itertools.product(range(rates), range(seeds)):
        run_id, lr = (
            f"lrs-{i:04x}{seed:04x}",
            float(f"{0.001 * 1000 ** (i / max(1, rates - 1)):.3g}"),
        )
        made.append(point(run_id, lr=lr, seed=seed))
        accuracy = 0.98 - 0.03 * (math.log10(lr) + 1) ** 2 - 0.004 * seed
        add(
            sweep,
            run_id,
            accuracy,
            best={"value": accuracy - 0.01, "test_accuracy": accuracy} if best else None,
        )
    record(sweep, made)
    return sweep


def test_fifty_curves_stay_a_picture(tmp_path: Path) -> None:
    page = Page(write_sweep(many(tmp_path, 25, 2)))
    assert len(page.all("tr")) > 50 and len(page.source) < 300_000
    plots = page.all("svg", "plot")
    assert len(plots) == 2  # test accuracy and train loss
    assert len(page.all("g", "one")) == 2 * 49 and len(page.all("g", "best")) == 2
    assert len(page.ids) == len(set(page.ids))
    legends = [a for a in page.all("li")]
    assert len(legends) == 2 * (
        1 + sweep_charts.SHADES
    )  # the best and five groups, not fifty names
    assert re.search(r"lr 0\.001 to 0\.00\d+ ", page.text) and re.search(
        r"lr 0\.\d+ to 1\.0", page.text
    )
    assert {style for a in page.all("g", "one") for style in (a["class"] or "").split()} == {
        "one",
        "c0",
        "c1",
        "c2",
        "c3",
        "c4",
    }


def test_a_point_that_diverged_does_not_flatten_the_others(sweep: SweepDir) -> None:
    lines(
        sweep.run("lrs-00000004").metrics,
        [train_row(10, 2.4), train_row(20, 1e12), train_row(30, math.nan)],
    )
    page = Page(write_sweep(sweep))
    assert "1 line at the upper edge: not finite there, or far above the others." in page.text
    assert not re.search(r' (d|x|y|cx|cy)="[^"]*(nan|inf)', page.source)
    ticks = re.findall(r'<text class="y"[^>]*>([^<]+)</text>', page.source)
    assert not any("e" in tick or len(tick) > 5 for tick in ticks), ticks


def test_shades_follow_the_order_of_numbers_and_leave_the_seed_out(sweep: SweepDir) -> None:
    read = sweep_data.read(sweep)
    shades = sweep_charts.shades(read)
    assert shades.legend == [("c0", "lr 0.1"), ("c4", "lr 0.4")]
    assert [shades.of(p) for p in read.points] == ["c0", "c0", "c4", "c4"]
    record(sweep, [point("lrs-00000001", lr=0.1, seed=0), point("lrs-00000002", lr=0.1, seed=1)])
    assert sweep_charts.shades(sweep_data.read(sweep)).legend == [("plain", "a point")]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        ([LR, SEED], ["lr", "seed"]),
        (["train.model.width", "train.other.width"], ["model.width", "other.width"]),
        (["train.model", "train.x.model"], ["train.model", "x.model"]),
    ],
)
def test_axes_have_the_shortest_names_that_tell_them_apart(
    axes: list[str], names: list[str]
) -> None:
    assert list(sweep_data.short_names(axes).values()) == names
