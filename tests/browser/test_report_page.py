"""The report in a real browser: it shows everything, asks for nothing, complains of nothing, and
fits a telephone.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.report import images, write
from tests import ranks
from tests.browser.chromium import Chromium, View
from tests.test_report import HOSTILE, luminance
from tests.test_report_evaluation import (
    change,
    encoded,
    end,
    evaluation,
    fill,
    mistake,
    png,
    run,
    square,
)
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.datasets.prepare import prepare

__all__ = ["run"]  # the fixture
WIDE, NARROW = 1200, 400
# Elements that begin or end outside the window, those left out that lie in a part that scrolls by
# itself.
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => !e.closest(".scroll *, svg *")).filter(e => {
  const box = e.getBoundingClientRect(); return box.width && (box.left < -1 || box.right > innerWidth + 1)
}).map(e => e.outerHTML.slice(0, 200))"""
BROKEN_IMAGES = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
# As the browser computes them: each cell's colour, painted over the page's, and the colour of its
# number.
CELLS = """(() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d", {willReadFrequently: true});
  const hex = (...colours) => {
    for (const colour of colours) { pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1); }
    return "#" + [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map(v => v.toString(16).padStart(2, "0")).join("");
  };
  const page = getComputedStyle(document.body).backgroundColor;
  return [...document.querySelectorAll("td.heat")].map(cell => {
    const looks = getComputedStyle(cell); return [hex(page, looks.backgroundColor), hex(looks.color)];
  });
})()"""


def check(view: View, width: int) -> None:
    """What holds for every report."""
    assert view.complaints() == []
    assert view.requests() == []
    assert view.evaluate(BROKEN_IMAGES) == []
    assert view.evaluate("document.documentElement.scrollWidth") == width
    assert view.evaluate(OUTSIDE) == []
    picture = view.screenshot()
    assert picture.startswith(images.SIGNATURE)
    across, down = struct.unpack(">II", picture[16:24])
    assert (across, down) == (
        width,
        view.evaluate("document.documentElement.scrollHeight"),
    ) and down > 1000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    config = ranks.config(epochs=1)
    found = ranks.make_run(folder, config, prepare(config.train.data, folder, folder))
    assert ranks.train(found, "local-1", 1) == 0, ranks.logs(found)
    return found


@pytest.fixture
def opened(browser: Chromium) -> Iterator[list[View]]:
    """Views that are closed after the test."""
    views: list[View] = []
    yield views
    for view in views:
        view.close()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_real_run(
    browser: Chromium, opened: list[View], trained: RunDir, width: int, dark: bool
) -> None:
    opened.append(browser.open(write(trained), width, dark))
    check(opened[0], width)
    shown = opened[0].evaluate("document.body.innerText")
    assert "test accuracy" in shown and ("By class" in shown) == trained.evaluation("test").exists()
    assert (opened[0].evaluate("document.images.length") > 0) == trained.samples.exists()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("size", [3, 20, 40, 101])
def test_all_sections(
    browser: Chromium, opened: list[View], run: RunDir, size: int, width: int, dark: bool
) -> None:
    fill(run)
    evaluation(run, *square(size))
    opened.append(browser.open(write(run), width, dark))
    view = opened[0]
    view.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    check(view, width)
    assert view.evaluate("[...document.querySelectorAll('h2')].map(h => h.innerText)")[:5] == [
        "Key numbers",
        "Curves",
        "Epochs",
        "By class",
        "Pictures",
    ]
    assert view.evaluate("document.images.length") == 43
    assert view.evaluate(
        "[...new Set([...document.images].map(i => i.clientWidth +"
        " getComputedStyle(i).imageRendering))]"
    ) == ["96pixelated"]
    assert view.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") == dark
    for ground, ink in view.evaluate(CELLS):
        low, high = sorted((luminance(ground), luminance(ink)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ground, ink)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_long_and_hostile_words_and_huge_numbers(
    browser: Chromium, opened: list[View], run: RunDir, width: int
) -> None:
    for split, size in (("val", 3), ("test", 25)):
        evaluation(run, [f"{i}{HOSTILE}{'long' * 50}" for i in range(size)], square(size)[1], split)
        change(run.evaluation(split), global_step=1e250)
    odd = mistake(truth=HOSTILE, predicted="long" * 50, sample=10**11)
    write_json(run.misclassified, {"split": HOSTILE, "global_step": 1e250, "pictures": [odd]})
    best: dict[str, Any] = {
        "split": HOSTILE,
        "metric": "accuracy",
        "value": 1e250,
        "global_step": 1e250,
        "test_accuracy": 1e250,
    }
    end(run, best=best, skipped_pictures=1e250)
    opened.append(browser.open(write(run), width))
    opened[0].evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    check(opened[0], width)


def test_a_spoilt_picture_shows_its_words(
    browser: Chromium, opened: list[View], run: RunDir
) -> None:
    """It begins as a PNG file and ends in the middle: the page is as it was otherwise."""
    write_json(run.samples, {"pictures": [{"png": encoded(png()[:40]), "truth": "cat"}]})
    opened.append(browser.open(write(run)))
    assert opened[0].evaluate(BROKEN_IMAGES) == ["A train picture of cat"]
    assert (opened[0].complaints(), opened[0].requests()) == ([], [])


@pytest.mark.parametrize(
    ("html", "complaint", "request_"),
    [
        ("<img src='http://127.0.0.1:9/x'>", "Failed to load", "http://127.0.0.1:9/x"),
        (
            (
                '<meta http-equiv=Content-Security-Policy content="default-src'
                " 'none'\"><script>1</script>"
            ),
            "Security Policy",
            None,
        ),
        ("<script>console.error('odd')</script>", "odd", None),
        ("<script>throw new Error('thrown')</script>", "thrown", None),
        ("<div style='width:500px'>wide</div>", None, None),
    ],
)
def test_these_tests_can_fail(
    browser: Chromium,
    opened: list[View],
    tmp_path: Path,
    html: str,
    complaint: str | None,
    request_: str | None,
) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><body>{html}")
    opened.append(browser.open(page, NARROW))
    found = json.dumps(opened[0].complaints())
    assert complaint in found if complaint else found == "[]"
    assert opened[0].requests() == ([request_] if request_ else [])
    if "500px" in html:
        assert (
            opened[0].evaluate("document.documentElement.scrollWidth") > NARROW
            and len(opened[0].evaluate(OUTSIDE)) == 1
        )
