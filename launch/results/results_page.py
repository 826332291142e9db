"""The page of `batchyard results`: printed figures and ours, as a paper's table.

What stands in it is launch.results' part.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from launch import words
from launch.report import run_page, sweep_data
from launch.report.html import Html, section, table, text
from launch.results.compare import Row, Verdict
from launch.words import NONE

NAME = "results.html"  # in the folder of the runs
TONES: dict[Verdict, tuple[str, str]] = {
    "reached": ("good", "✓"),
    "falls short": ("bad", "✕"),
    "not comparable": ("warn", "≠"),
    "not measured": ("info", "○"),
    "none printed": ("info", "·"),
}
HEADS = [
    ("Figure", "name"),
    ("Printed", "figure"),
    ("Ours", "figure"),
    ("Verdict", "short"),
    ("Notes", "short"),
]
NOTE = (
    "Ours: mean ± standard deviation (over n - 1) over seeds. Red: the mean is worse than the"
    " printed figure by more than the tolerance that the job's file names, else by more than half"
    " of the figure's last digit. Amber: not comparable, since not run in full or on a stand-in;"
    " whether it reaches the figure is said all the same. Links lead to the job's file and to the"
    " runs' pages, where they lie as they do here."
)


def write(rows: list[Row], runs: Path) -> Path:
    """Writes results.html into the folder of the runs. Returns its path."""
    runs.mkdir(parents=True, exist_ok=True)
    return run_page.save(runs / NAME, render(rows, runs))


def render(rows: list[Row], runs: Path) -> Html:
    """The whole page."""
    count = Counter(row.verdict for row in rows)
    said = ", ".join(f"{count[verdict]} {verdict}" for verdict in TONES if count[verdict])
    header = (
        '<header><div><p class="kicker">Batchyard results</p><h1>Printed figures and ours</h1>'
        f'<p class="soft">{words.plural(len(rows), "figure")}: {text(said)}</p></div></header>'
    )
    notes: dict[str, int] = {}  # numbered as they come
    cells: list[list[str]] = []
    for heading, group in groupby(rows, key=lambda row: _heading(row, runs)):
        cells += [[heading], *(_row(row, notes) for row in group)]
    listed = "".join(f"<li>{text(note)}</li>" for note in notes)
    told = (
        table(HEADS, cells, "Results")
        + f'<ol class="note">{listed}</ol><p class="note">{text(NOTE)}</p>'
    )
    body = told if rows else '<p class="soft">No job of these has a printed figure.</p>'
    return run_page.document(
        text("Batchyard results"), header, [section("Results", body)], runs, time.time()
    )


def _heading(row: Row, runs: Path) -> Html:
    """The job, how it was measured, and its runs."""
    of_runs = ", ".join(_run(run_id, runs) for run_id in row.runs)
    return _over(
        Html(_link(row.job_file, row.job, runs)), *filter(None, (row.measured, Html(of_runs)))
    )


def _row(row: Row, notes: dict[str, int]) -> list[str]:
    figure = ", ".join(filter(None, (row.figure, row.label)))
    ours = (
        sweep_data.spread((row.mean, row.deviation), in_percent=row.in_percent)
        if row.mean is not None
        else NONE
    )
    numbers = [notes.setdefault(note, len(notes) + 1) for note in row.footnotes]
    verdict = _over(_verdict(row), *filter(None, (row.standing,)))
    return [figure, row.shown(row.published), ours, verdict, " ".join(map(str, numbers))]


def _verdict(row: Row) -> Html:
    tone, sign = TONES[row.verdict]
    if not row.values:
        return Html(f'<span class="soft">{text(row.verdict)}</span>')
    return Html(
        f'<span class="state {tone}"><span aria-hidden="true">{sign}</span>'
        f" {text(row.verdict)}</span>"
    )


def _over(first: Html, *others: str) -> Html:
    """A cell of several lines, all but the first one soft."""
    return Html(first + "".join(f'<br><span class="soft">{text(other)}</span>' for other in others))


def _run(run_id: str, runs: Path) -> Html:
    report = runs / run_id / "report.html"
    return _link(report, run_id, runs) if report.exists() else text(run_id)


def _link(to: Path, name: str, runs: Path) -> Html:
    """Relative to the page: it can be looked at where it lies, on another machine's mount too."""
    return Html(
        f'<a href="{text(quote(os.path.relpath(to.absolute(), runs.absolute())))}">{text(name)}</a>'
    )
