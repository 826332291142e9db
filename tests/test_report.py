"""The report page: what it says, that it needs nothing but itself, and that no run directory is too
odd for it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from launch import words
from launch.report import chart, style, write
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome, Verdict
from trainer.config.run import RunConfig

HOSTILE = '"><script>alert(1)</script><img src="http://evil.example/x">&amp;\'</style></title>'
VOID = {"meta", "wbr", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What the page's HTML is made of; fails on an element that is not closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if found := dict(attrs).get("id"):
            self.ids.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, in order, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, style: str = "") -> list[dict[str, str | None]]:
        return [
            a
            for t, a in self.tags
            if t == tag and (not style or style in (a.get("class") or "").split())
        ]


def configure(run: RunDir, job: str = "digits") -> None:
    train = {
        "epochs": 30,
        "global_batch_size": 96,
        "data": {"name": "digits"},
        "model": {"name": "mlp", "hidden": [64]},
    }
    train |= {"optimizer": {"name": "sgd", "lr": 0.1}, "schedule": {"name": "cosine"}}
    execution = {"ranks": 2, "threads_per_rank": 3, "device": "cpu"}
    config = RunConfig.model_validate(
        {"job": job, "run_id": run.run_id, "train": train, "execution": execution}
    )
    write_json(run.config, config.model_dump(mode="json"))


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train_row(step: int, loss: float, **more: Any) -> dict[str, Any]:
    row = {
        "kind": "train",
        "global_step": step,
        "epoch": 1,
        "loss": loss,
        "accuracy": 0.5,
        "lr": 0.1,
        "grad_norm": 1.0,
    }
    return {**row, "samples": 96, **more}


def eval_row(step: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "kind": "eval",
        "split": "test",
        "global_step": step,
        "epoch": 2,
        "loss": 0.3,
        "accuracy": accuracy,
        **more,
    }


def timing_row(attempt: str, step: int, **more: Any) -> dict[str, Any]:
    row = {
        "attempt": attempt,
        "global_step": step,
        "epoch": 1,
        "images_per_s": 1000.0,
        "step_time_s": 0.04,
    }
    return {**row, "data_wait_s": 0.01, "peak_memory_mb": 512.0, "elapsed_s": 7.0, **more}


def start(
    run: RunDir, attempt: str, started: float, ended: float | None = None, **more: Any
) -> None:
    record = {
        "attempt": attempt,
        "backend": attempt.split("-")[0],
        "started": started,
        "host": "node7",
        "pid": 1,
    }
    record |= {"argv": ["torchrun"], "nodes": 1, "nproc_per_node": 2, "world_size": 2, **more}
    write_json(run.attempt(attempt).record, record if ended is None else {**record, "ended": ended})


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A directory with nothing in it."""
    run = RunDir(tmp_path / "runs" / "digits-1a2b3c4d")
    run.path.mkdir(parents=True)
    return run


@pytest.fixture
def continued(run: RunDir) -> RunDir:
    """A run that was preempted at step 100 on one machine and completed on another."""
    configure(run)
    run.job.write_text("train:\n  epochs: 30\n")
    write_json(
        run.code_record,
        {"commit": "3f9c2ab", "dirty": True, "versions": {"torch": "2.9.1"}, "image": None},
    )
    lines(
        run.metrics,
        [train_row(s, 200.0 / s) for s in range(10, 201, 10)]
        + [eval_row(100, 0.9), eval_row(200, 0.98)],
    )
    lines(
        run.timing,
        [timing_row("local-1" if s <= 100 else "slurm-7.0", s) for s in range(10, 201, 10)],
    )
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0)
    start(run, "slurm-7.0", 1_760_001_000.0, 1_760_001_140.0)
    Outcome("stopped", "preempted", "local-1", "trainer rank 0", 100, cause="asked to stop").write(
        run.attempt("local-1").outcome
    )
    done = Outcome(
        "completed",
        "completed",
        "slurm-7.0",
        "trainer rank 0",
        200,
        test_accuracy=0.98333,
        weights_sha256="ab" * 32,
    )
    done.write(run.attempt("slurm-7.0").outcome)
    done.write(run.outcome)
    return run


def test_tells_a_completed_run(continued: RunDir) -> None:
    page = Page(write(continued))
    for said in (
        "98.33% test accuracy",
        "✓ Completed It ran to its last step.",
        "Steps 200",
        "Epochs 2 of 30",
        "Wall time 3 min 20 s over 2 attempts",
        "Images/s 1,000",
        "Peak memory 512 MB",
        "World size 2 2 asked for",
        "Threads 3 a rank",
        "Backend local, slurm device cpu",
        "Stopped: preempted asked to stop",
        "2025-10-09 08:53:20",
        "40 ms 10 ms 25.0%",
        "git checkout 3f9c2ab",
        "it had changes. The code that ran is in",
        "schedule. name cosine",
    ):
        assert said in page.text, said
    assert "so far" not in page.text
    assert f"cp {continued.job} digits.yaml batchyard submit digits.yaml --new" in page.text


def test_shows_the_outcomes_accuracy_and_not_the_last_rows(continued: RunDir) -> None:
    lines(continued.metrics, [eval_row(200, 0.5)])
    found = re.search(r'class="result"><b>([\d.]+)%</b>', write(continued).read_text())
    outcome = Outcome.read(continued.outcome)
    assert found and outcome and outcome.test_accuracy
    assert float(found[1]) == pytest.approx(outcome.test_accuracy * 100, abs=0.005)


def test_needs_nothing_but_itself(continued: RunDir) -> None:
    page = Page(write(continued))
    loading = {"src", "href", "srcset", "action", "data", "poster", "xlink:href", "background"}
    assert [(t, a) for t, a in page.tags if loading & set(a)] == []
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
    assert not [a for _, attributes in page.tags for a in attributes if a.startswith("on")]
    assert not re.search(r"https?:|//\w|@import|url\(", page.source)
    assert "default-src 'none'" in (page.all("meta")[1]["content"] or "")


def test_is_accessible(continued: RunDir) -> None:
    page = Page(write(continued))
    assert len(page.ids) == len(set(page.ids))
    for svg in page.all("svg"):
        if svg.get("aria-hidden") != "true":
            assert svg["role"] == "img"
            assert all(i in page.ids for i in (svg["aria-labelledby"] or "").split())
    assert len(page.all("svg", "plot")) == 4
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    assert (
        "test: 90.0% at step 100, 98.0% at step 200; lowest 90.0%, highest 98.0%, 2 values."
        in page.text
    )


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK])
def test_contrast_is_at_least_that_of_wcag_aa(palette: str) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w{6});", palette))
    for ground in (colours.pop("back"), colours.pop("panel")):
        for name in colours.keys() - {"rule", "grid"}:
            dark, light = sorted((luminance(ground), luminance(colours[name])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, ground)


def test_escapes_every_value(run: RunDir) -> None:
    configure(run, job=HOSTILE)
    run.job.write_text(HOSTILE)
    write_json(
        run.code_record,
        {"commit": HOSTILE, "dirty": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: [HOSTILE]}},
    )
    lines(
        run.metrics,
        [train_row(1, 1.0), eval_row(1, 0.5, epoch=HOSTILE), eval_row(2, 0.5, split=HOSTILE)],
    )
    lines(run.timing, [timing_row(HOSTILE.replace("/", ""), 1, images_per_s=HOSTILE)])
    start(run, "local-1", 1.0, 2.0)
    start(
        run, HOSTILE.replace("/", ""), 3.0, 4.0, backend=HOSTILE, host=HOSTILE, world_size=HOSTILE
    )
    odd = Outcome(
        "failed", HOSTILE, HOSTILE.replace("/", ""), HOSTILE, 7, HOSTILE, HOSTILE, HOSTILE
    )  # type: ignore[arg-type]
    odd.write(run.outcome)
    page = Page(write(run))
    assert "<script" not in page.source and "<img" not in page.source
    assert (
        page.source.count("</style>")
        == page.source.count("</title>") - len(page.all("title")) + 1
        == 1
    )
    assert page.text.count("<script>alert(1)</script>") >= 10
    assert page.all("img") == [] and page.all("script") == []


def test_a_chart_escapes_its_words() -> None:
    series = [chart.Series(HOSTILE, [(0, 1), (1, math.nan)]), chart.Series("b", [(0, 1)])]
    drawn = chart.figure(chart.Chart(HOSTILE, series, [(0, HOSTILE)]))
    assert "<script" not in drawn and "<img" not in drawn
    assert drawn.count("&lt;script&gt;") >= 6


def test_marks_where_an_attempt_took_over(continued: RunDir) -> None:
    page = Page(write(continued))
    assert len(page.all("path", "mark")) == 4
    assert "slurm-7.0 from about step 100." in page.text
    # Killed after its last row and before its next checkpoint: the new attempt's first row is
    # nearer.
    Outcome("failed", "killed", "local-1", "launch.node", 119).write(
        continued.attempt("local-1").outcome
    )
    assert "slurm-7.0 from about step 110." in Page(write(continued)).text


def test_draws_rows_in_the_order_of_their_steps(run: RunDir) -> None:
    lines(run.metrics, [train_row(s, 1.0) for s in (30, 10, 20)])
    for line in Page(write(run)).all("path", "line"):
        across = [float(x) for x in re.findall(r"[ML]([\d.]+),", line["d"] or "")]
        assert len(across) in (0, 3) and across == sorted(across)


def test_a_failure_says_cause_rank_and_hint(continued: RunDir) -> None:
    bad = Outcome(
        "failed",
        "oom_gpu",
        "slurm-7.0",
        "launch.node",
        150,
        rank=1,
        cause="CUDA out of\nmemory",
        hint="a smaller batch",
    )
    bad.write(continued.outcome)
    page = Page(write(continued))
    assert "✕ Failed: out of GPU memory" in page.text
    assert "Cause CUDA out of memory Rank 1 To try a smaller batch" in page.text
    assert page.all("div", "bad")
    assert "98.00% test accuracy so far, at step 200" in page.text


@pytest.mark.parametrize("verdict", get_args(Verdict))
def test_every_verdict_has_words(run: RunDir, verdict: Any) -> None:
    Outcome("failed", verdict, "local-1", "launch.node").write(run.outcome)
    expected = words.FAILED_BY_TIMEOUT if verdict == "timeout" else words.VERDICTS[verdict][1]
    assert expected in Page(write(run)).text


def test_a_stop_at_the_time_limit_continues(run: RunDir) -> None:
    Outcome("stopped", "timeout", "local-1", "launch.node").write(run.outcome)
    assert "The next start continues" in Page(write(run)).text


def test_an_empty_directory(run: RunDir) -> None:
    page = Page(write(run))
    assert "digits digits-1a2b3c4d ○ Not started" in page.text
    for missing in (
        "metrics yet",
        "timings yet",
        "attempts yet",
        "job.yaml",
        "config.json",
        "code.json",
    ):
        assert f"No {missing}." in page.text


def test_an_older_outcome_is_not_a_newer_attempts_end(continued: RunDir) -> None:
    start(continued, "slurm-7.1", 1_760_002_000.0)
    assert "○ No outcome" in Page(write(continued)).text
    write_json(continued.lock, {"attempt": "slurm-7.1"})
    lines(continued.timing, [timing_row("slurm-7.1", 210)])
    page = Page(write(continued))
    assert "● Running" in page.text
    assert "Wall time 3 min 27 s at least, over 3 attempts" in page.text
    assert "≥ 7.0 s" in page.text


@pytest.mark.parametrize(
    "spoilt", ["", "{", "[1]", "null", '{"status": "failed"}', '"x"', '{"started": 5}', "{}"]
)
def test_partial_files(continued: RunDir, spoilt: str) -> None:
    files = [
        continued.config,
        continued.code_record,
        continued.outcome,
        continued.metrics,
        continued.timing,
    ]
    files += [continued.attempt("local-1").outcome, continued.attempt("slurm-7.0").record]
    for path in files:
        kept = path.read_text()
        path.write_text(spoilt)
        Page(write(continued))
        path.write_text(kept)
    for path in files:
        path.write_text(spoilt)
    Page(write(continued))


def test_rows_without_what_they_should_have(run: RunDir) -> None:
    odd: list[Any] = [
        3,
        {},
        {"kind": "train"},
        {"kind": "train", "global_step": "x", "loss": 1},
        {"global_step": 3},
    ]
    odd += [
        {"kind": "train", "global_step": 5, "loss": "high", "lr": None},
        {"kind": "eval", "global_step": 5, "accuracy": True},
    ]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in odd) + '{"kind": "tra')
    lines(run.timing, [{}, {"attempt": "local-1"}, {"attempt": "local-1", "images_per_s": None}])
    start(run, "local-1", 1e20)
    assert "No metrics yet." in Page(write(run)).text


def test_one_row(run: RunDir) -> None:
    lines(run.metrics, [train_row(50, 2.3)])
    page = Page(write(run))
    assert len(page.all("svg", "plot")) == 4
    assert all(
        re.fullmatch(r"M[\d.]+,[\d.]+h0", line["d"] or "") for line in page.all("path", "line")
    )
    assert "train: 2.3 at step 50, 2.3 at step 50; lowest 2.3, highest 2.3, 1 value." in page.text


def test_values_that_are_not_finite(run: RunDir) -> None:
    losses = [2.0, math.nan, 1.0, 0.5, math.inf, -math.inf, math.nan]
    lines(
        run.metrics,
        [train_row(10 * (i + 1), loss) for i, loss in enumerate(losses)] + [eval_row(10, math.nan)],
    )
    assert "NaN" in run.metrics.read_text()
    page = Page(write(run))
    assert "train: 4 rows are not finite, the first is NaN at step 20 (" in page.text
    assert "test: NaN at step 10" in page.text
    assert len(page.all("path", "odd")) == 4 + 1
    assert not re.search(r' (d|x|y|cx|cy)="[^"]*(nan|inf)', page.source)
    lines(run.metrics, [train_row(1, math.nan)])
    assert "train: NaN at step 1" in Page(write(run)).text


def test_a_hundred_thousand_rows(run: RunDir) -> None:
    rows = [
        train_row(s, 9.0 if s == 54_321 else 0.001 if s == 65_432 else 1.0)
        for s in range(1, 100_001)
    ]
    lines(run.metrics, rows)
    page = Page(write(run))
    assert len(page.source) < 200_000
    drawn = [
        re.findall(r"[ML]([\d.]+),([\d.]+)", line["d"] or "") for line in page.all("path", "dense")
    ]
    assert len(drawn) == 4
    assert all(len(points) <= chart.MOST_POINTS for points in drawn)
    heights = [float(y) for _, y in drawn[0]]
    # the one spike and the one dip are there
    assert sum(y < min(heights) + 0.01 for y in heights) == 1
    assert sum(y > max(heights) - 0.01 for y in heights) == 1
    assert "up to 100,000 rows" in page.text


def test_thin_keeps_ends_extremes_and_gaps() -> None:
    points = [(float(i), math.sin(i)) for i in range(5000)]
    points[1234] = (1234.0, 50.0)
    points[2345] = (2345.0, math.nan)
    points[3456] = (3456.0, -50.0)
    kept = chart.thin(points)
    assert len(kept) <= chart.MOST_POINTS
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    assert {points[0], points[1234], points[3456], points[-1]} <= set(kept)
    assert any(math.isnan(value) for _, value in kept)
    assert chart.thin(points[:500]) == points[:500]


def plot(series: list[tuple[float, float]], **options: Any) -> str:
    return chart.figure(chart.Chart("Known", [chart.Series("line", series)], **options))


def test_a_known_line_lies_where_it_should() -> None:
    left, right, top, floor = (
        chart.LEFT,
        chart.WIDTH - chart.RIGHT,
        chart.TOP,
        chart.HEIGHT - chart.BOTTOM,
    )
    svg = plot([(0, 0), (50, 5), (100, 10)], marks=[(25, "attempt two")])
    middle = f"{(left + right) / 2:.1f},{(top + floor) / 2:.1f}"
    assert f'd="M{left:.1f},{floor:.1f}L{middle}L{right:.1f},{top:.1f}"' in svg
    assert re.findall(r'class="y"[^>]*>([^<]*)', svg) == ["0", "2", "4", "6", "8", "10"]
    assert re.findall(r'class="x"[^>]*>([^<]*)', svg) == ["0", "20", "40", "60", "80", "100"]
    assert f'class="mark" d="M{left + (right - left) / 4:.1f},{top}V{floor}"' in svg
    assert re.search(rf'class="end plain" x="{right + 9:.1f}" y="{top:.1f}">10<', svg)


def test_a_known_line_on_a_log_axis() -> None:
    left, right, top, floor = (
        chart.LEFT,
        chart.WIDTH - chart.RIGHT,
        chart.TOP,
        chart.HEIGHT - chart.BOTTOM,
    )
    svg = plot([(0, 10), (50, 1), (100, 0.1)], may_log=True)
    middle = f"{(left + right) / 2:.1f},{(top + floor) / 2:.1f}"
    assert "log scale" in svg
    assert f'd="M{left:.1f},{top:.1f}L{middle}L{right:.1f},{floor:.1f}"' in svg
    assert "log scale" not in plot([(0, 10), (100, 1)], may_log=True)  # too small a range
    assert "log scale" not in plot([(0, 10), (100, 0)], may_log=True)  # zero has no logarithm


def test_ticks_are_round() -> None:
    assert chart.value_axis(0.1, 0.98, 0, 1).ticks == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert chart.value_axis(0.985, 0.9991, 0, 1).ticks == pytest.approx([0.985, 0.99, 0.995, 1.0])
    assert chart.value_axis(-3, 4, 0, 1).ticks == pytest.approx([-4, -2, 0, 2, 4])
    assert chart.value_axis(0, 0, 0, 1).ticks == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, 0.1])


@pytest.mark.parametrize(
    "values",
    [[1.0, 1.0], [0.0], [1e-308, 2e-308], [-9e299, 9e299], [5e-324, 1e250], [1e9, 1e9 + 0.5]],
)
@pytest.mark.parametrize("options", [{}, {"may_log": True}, {"percent": True}])
def test_extreme_values_stay_inside(values: list[float], options: dict[str, bool]) -> None:
    svg = plot([(float(i), v) for i, v in enumerate(values)], **options)
    for x, y in re.findall(r"[ML]([-\d.]+),([-\d.]+)", svg):
        assert 0 <= float(x) <= chart.WIDTH and 0 <= float(y) <= chart.HEIGHT


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    three = [chart.Series(f"s{i}", [(0, 0), (9, 0.001 * i)]) for i in range(3)] + [
        chart.Series("top", [(0, 5), (9, 5)])
    ]
    svg = chart.figure(chart.Chart("Three", three))
    at = sorted(float(y) for y in re.findall(r'class="end plain" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(at) == 4
    assert all(b - a >= chart.LABEL_GAP - 0.11 for a, b in itertools.pairwise(at))
    assert at[0] >= chart.TOP - 1 and at[-1] <= chart.HEIGHT - chart.BOTTOM + 0.1


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (999.7, "1,000"),
        (0.0213456, "0.0213"),
        (12345.6, "12,346"),
        (1.25e-7, "1.25e-7"),
        (3e9, "3e9"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers(value: float, said: str) -> None:
    assert words.number(value) == said


def test_durations() -> None:
    said = [words.seconds(s) for s in (0.0041, 12.34, 59.97, 200, 3725, 93_600)]
    assert said == ["4.1 ms", "12.3 s", "1 min 00 s", "3 min 20 s", "1 h 02 min", "1 d 2 h"]


def test_replaces_the_page_in_one_step(continued: RunDir) -> None:
    first = write(continued)
    assert first == continued.report
    # another file under the name, never a rewritten one
    assert first.stat().st_ino != write(continued).stat().st_ino
    assert not [p for p in continued.path.iterdir() if p.name.endswith(".tmp")]


def test_imports_neither_torch_nor_anything_else_of_launch() -> None:
    code = "import sys, launch.report; print(*sorted(m for m in sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "wandb", "numpy", "matplotlib", "submitit", "click"} & set(loaded)
    assert {
        m for m in loaded if m.startswith("launch.") and not m.startswith("launch.report")
    } == set()
