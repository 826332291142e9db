"""The report on an evaluation: classes, confusions, pictures, the best step; and files that are not
as they should be.
"""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from launch.report import images as pictures
from launch.report import style, write
from tests.test_report import (
    HOSTILE,
    Page,
    configure,
    eval_row,
    lines,
    luminance,
    start,
    timing_row,
    train_row,
)
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

PETS = ["cat", "dog", "frog"]
CONFUSION = [[842, 112, 46], [51, 948, 1], [0, 0, 1000]]


def png(width: int = 4, height: int = 4) -> bytes:
    """A grey picture."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = (
        b"".join(b"\0" + bytes(range(50, 50 + width)) for _ in range(height))
        if width < 200
        else b""
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        pictures.SIGNATURE
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def evaluation(
    run: RunDir, classes: list[str], confusion: list[list[int]], split: str = "test"
) -> None:
    samples, correct = [sum(row) for row in confusion], [row[i] for i, row in enumerate(confusion)]
    found = {
        "split": split,
        "global_step": 200,
        "epoch": 2,
        "classes": classes,
        "samples": samples,
        "correct": correct,
    }
    write_json(run.evaluation(split), {**found, "confusion": confusion})


def change(path: Path, **other: Any) -> None:
    write_json(path, {**read_json(path), **other})


def square(size: int) -> tuple[list[str], list[list[int]]]:
    """Classes c0, c1, ...: of each class i, 100 - i are right, and the others are the class after
    it.
    """
    rows = [
        [100 - i if j == i else i if j == (i + 1) % size else 0 for j in range(size)]
        for i in range(size)
    ]
    return [f"c{i}" for i in range(size)], rows


def mistake(**other: Any) -> dict[str, Any]:
    return {
        "png": encoded(png()),
        "truth": "cat",
        "predicted": "dog",
        "probability": 0.98,
        "sample": 417,
        **other,
    }


def end(run: RunDir, **extra: Any) -> None:
    done = Outcome(
        "completed", "completed", "local-1", "trainer rank 0", 200, test_accuracy=0.93, extra=extra
    )
    done.write(run.attempt("local-1").outcome)
    done.write(run.outcome)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run without figures."""
    run = RunDir(tmp_path / "runs" / "pets-1a2b3c4d")
    run.path.mkdir(parents=True)
    configure(run, job="pets")
    lines(
        run.metrics,
        [train_row(s, 200.0 / s) for s in range(10, 201, 10)]
        + [eval_row(100, 0.9), eval_row(200, 0.93)],
    )
    lines(run.timing, [timing_row("local-1", s) for s in range(10, 201, 10)])
    start(run, "local-1", 1_760_000_000.0, 1_760_000_060.0)
    end(run)
    return run


def fill(run: RunDir) -> None:
    """Everything that a run with a validation split can leave."""
    for split in ("val", "test"):
        evaluation(run, PETS, CONFUSION, split)
    rows = [
        eval_row(s, 0.9 + s / 10_000, split=split, accuracy_top5=0.99)
        for s in (100, 200)
        for split in ("val", "test")
    ]
    lines(
        run.metrics,
        [train_row(s, 200.0 / s, epoch=1 + (s > 100)) for s in range(10, 201, 10)] + rows,
    )
    write_json(
        run.samples,
        {"pictures": [{"png": encoded(png()), "truth": name} for name in PETS * 5 + ["cat"]]},
    )
    write_json(
        run.misclassified,
        {"split": "test", "global_step": 200, "pictures": [mistake() for _ in range(16)]},
    )
    right = mistake(predicted="cat", sample=0)
    write_json(
        run.predictions,
        {"split": "test", "global_step": 200, "pictures": [right, *(mistake() for _ in range(10))]},
    )
    best = {
        "split": "val",
        "metric": "accuracy",
        "value": 0.9456,
        "global_step": 100,
        "test_accuracy": 0.9311,
    }
    end(run, best=best, early_stopped=True, skipped_pictures=3)


def test_a_run_without_figures_has_no_word_of_them(run: RunDir) -> None:
    page = Page(write(run))
    for word in (
        "By class",
        "Confusion",
        "Pictures",
        "Top-5",
        "Best (",
        "Early stopping",
        "left out",
    ):
        assert word not in page.text, word


def test_tells_each_class(run: RunDir) -> None:
    evaluation(run, PETS, CONFUSION)
    page = Page(write(run))
    assert "Test set 2,790 of 3,000 right (93.00%) at step 200, epoch 2." in page.text
    assert (
        "cat 1,000 842 84.2% dog, 112 times dog 1,000 948 94.8% cat, 51 times frog 1,000 1,000"
        " 100.0% —" in page.text
    )
    assert re.findall(r'style="width:([\d.]+)%"', page.source) == ["84.2", "94.8", "100.0"]
    assert (
        "Most often: cat taken for dog, 112 times; dog taken for cat, 51 times; cat taken for frog,"
        " 46 times;" in page.text
    )


def test_a_class_without_samples_has_no_accuracy(run: RunDir) -> None:
    evaluation(run, PETS, [[0, 0, 0], [0, 9, 1], [0, 0, 0]])
    assert "cat 0 0 — — dog 10 9 90.0% frog, once" in Page(write(run)).text
    evaluation(run, PETS, [[0, 0, 0]] * 3)
    assert "0 of 0 right at step 200" in Page(write(run)).text


def test_shows_the_ends_of_many_classes(run: RunDir) -> None:
    evaluation(run, *square(30))
    assert "best of" not in Page(write(run)).text
    evaluation(run, *square(31))
    page = Page(write(run))
    best, worst = page.text.split("The 15 best of 31 classes")[1].split(
        "The 15 worst of 31 classes"
    )
    found = [re.findall(r"(c\d+) 100 (\d+) ", part) for part in (best, worst)]
    assert found[0] == [(f"c{i}", f"{100 - i}") for i in range(15)]
    assert found[1] == [(f"c{i}", f"{100 - i}") for i in range(30, 15, -1)]


def test_the_matrix_of_few_classes_is_a_table_with_numbers(run: RunDir) -> None:
    evaluation(run, *square(20))
    page = Page(write(run))
    cells = page.all("td", "heat")
    assert (
        len(cells) == 20 * 20
        and len(page.all("td", "right")) == 20
        and len(page.all("td", "wrong")) == 19
    )
    assert cells[21]["title"] == "c1, right: 99 of 100 (99.0%)"
    assert page.all("td", "wrong")[4]["title"] == "c5, taken for c6: 5 of 100 (5.0%)"
    assert all(th.get("scope") in ("row", "col", "colgroup") for th in page.all("th"))
    assert "Truth Predicted c0 c1 c2" in page.text and not page.all("svg", "cells")
    shares = [
        float((cell["style"] or "").removeprefix("--share:")) for cell in page.all("td", "wrong")
    ]
    assert shares == sorted(shares) and shares[-1] < 1


@pytest.mark.parametrize("size", [21, 100])
def test_the_matrix_of_more_classes_is_a_picture_with_titles(run: RunDir, size: int) -> None:
    evaluation(run, *square(size))
    page = Page(write(run))
    (picture,) = page.all("svg", "cells")
    assert picture["role"] == "img" and all(
        i in page.ids for i in (picture["aria-labelledby"] or "").split()
    )
    assert not page.all("td", "heat")
    assert len(page.all("rect")) == size * 2 - 1 and len(page.all("rect", "right")) == size
    side = float((picture["viewbox"] or "").split()[-1])
    assert all(float(cell[k] or "") <= side - 10 for cell in page.all("rect") for k in ("x", "y"))
    assert "c5, taken for c6: 5 of 100 (5.0%)" in page.text


def test_no_matrix_for_more_classes(run: RunDir) -> None:
    for confusion in (None, square(101)[1]):
        evaluation(run, *square(101))
        change(run.evaluation("test"), confusion=confusion)
        page = Page(write(run))
        assert "The 15 best of 101 classes" in page.text
        assert (
            "Confusion" not in page.text and "taken for" not in page.text and not page.all("rect")
        )


@pytest.mark.parametrize("palette", [style.LIGHT, style.DARK])
def test_the_numbers_in_the_deepest_cell_can_be_read(palette: str) -> None:
    colours = dict(re.findall(r"--(\w+): (#\w{6});", palette))
    deepest = int(re.search(r"--deepest: (\d+)%", palette)[1]) / 100  # type: ignore[index]
    for tone in ("train", "test"):  # the tones of right and wrong
        both = [[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in (tone, "back")]
        cell = "#" + "".join(
            f"{round(deepest * a + (1 - deepest) * b):02x}" for a, b in zip(*both, strict=True)
        )
        dark, light = sorted((luminance(cell), luminance(colours["text"])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("size", [3, 25])
def test_both_splits_on_one_page(run: RunDir, size: int) -> None:
    for split in ("val", "test"):
        evaluation(run, *square(size), split)
    page = Page(write(run))
    assert len(page.ids) == len(set(page.ids))
    assert (
        0
        < page.source.find("<h3>Test set</h3>")
        < page.source.find("<summary>Validation set</summary>")
    )
    run.evaluation("test").unlink()
    page = Page(write(run))
    assert "<h3>Validation set</h3>" in page.source and "<summary>Validation set" not in page.source


def test_shows_pictures_of_the_bytes_that_the_files_hold(run: RunDir) -> None:
    fill(run)
    page = Page(write(run))
    images = page.all("img")
    assert len(images) == 16 + 11 + 16
    for image in images:
        assert (
            base64.b64decode((image["src"] or "").removeprefix("data:image/png;base64,")) == png()
        )
    assert [i["alt"] for i in images[:2]] == ["A train picture of cat", "A train picture of dog"]
    assert [i["alt"] for i in images[15:18]] == [
        "A train picture of cat",
        "cat, right",
        "cat, taken for dog",
    ]
    assert images[-1]["alt"] == "cat, taken for dog"
    assert (
        "all over Test set, step 200; #: the number of the sample. cat ✓ right 98.0% · #0 cat taken"
        " for dog 98.0%" in page.text
    )
    assert (
        "mistakes Test set, step 200; #: the number of the sample. cat taken for dog 98.0% · #417"
        in page.text
    )


def test_only_few_pixels_are_shown_as_squares(run: RunDir) -> None:
    sizes = [(32, 32), (96, 96), (96, 128), (128, 96)]
    write_json(
        run.samples, {"pictures": [{"png": encoded(png(w, h)), "truth": "cat"} for w, h in sizes]}
    )
    assert len(Page(write(run)).all("img")) == 4 and len(Page(write(run)).all("img", "pixels")) == 2


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "not base64",
        "data:image/png;base64,AAAA",
        "http://evil.example/x.png",
        HOSTILE,
        None,
        3,
        [],
        {},
        "é",
        "A" * 2_000_000,
        encoded(b"\xff\xd8\xff\xe0JPEG"),
        encoded(b"<svg onload='alert(1)'/>"),
        encoded(pictures.SIGNATURE),
        encoded(png(0, 4)),
        encoded(png(2000, 2000)),
        encoded(png())[:-1] + "\n",
        encoded(png()) + '" onerror="alert(1)',
        encoded(b"x" + png()),
        encoded(b"\x89JNG" + png()[4:]),
        encoded(png() + bytes(1 << 20)),
    ],
)
def test_what_is_no_picture_is_left_out(run: RunDir, bad: Any) -> None:
    write_json(
        run.samples,
        {"pictures": [{"png": bad, "truth": "cat"}, {"png": encoded(png()), "truth": "dog"}]},
    )
    write_json(run.misclassified, {"pictures": [mistake(png=bad), mistake(png=bad)]})
    write_json(run.predictions, {"pictures": [mistake(png=bad)]})
    page = Page(write(run))
    assert [image["alt"] for image in page.all("img")] == ["A train picture of dog"]
    assert "1 picture of figures/samples.json cannot be shown: left out." in page.text
    assert "2 pictures of figures/misclassified.json cannot be shown: left out." in page.text
    assert "1 picture of figures/predictions.json cannot be shown: left out." in page.text
    assert "evil.example" not in page.source and "onerror" not in page.source


def test_loads_nothing_but_what_stands_in_it(run: RunDir) -> None:
    fill(run)
    page = Page(write(run))
    assert (
        page.all("meta")[1]["content"]
        == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    loading = {"href", "srcset", "action", "data", "poster", "xlink:href", "background"}
    assert [(t, a) for t, a in page.tags if loading & set(a)] == []
    assert all(
        (a.get("src") or "").startswith("data:image/png;base64,")
        for _, a in page.tags
        if "src" in a
    )
    assert not re.search(r"https?:|@import|url\(", page.source)


def test_top5_and_the_best_step(run: RunDir) -> None:
    fill(run)
    page = Page(write(run))
    for said in (
        "Top-5 99.00% test set, at step 200",
        "Best (val accuracy) 94.56% at step 100; test 93.11%",
        "✓ Completed Early stopping ended it",
        "Left out, since they could not be used: 3 pictures.",
        "Split Loss Accuracy Top-5 100 2 val 0.3 91.00% 99.00% 100 2 test 0.3 91.00% 99.00%",
        "train val test val top-5 test top-5",
    ):
        assert said in page.text, said
    assert len(page.all("g", "top5")) == 2
    end(
        run,
        best={
            "split": "val",
            "metric": "loss",
            "value": 0.4321,
            "global_step": 100,
            "test_accuracy": None,
        },
    )
    assert "Best (val loss) 0.432 at step 100" in Page(write(run)).text


def test_the_table_of_evaluations_has_no_empty_column(run: RunDir) -> None:
    assert "Split Loss Accuracy 100 2 test" in Page(write(run)).text


WRONG: list[Any] = [
    None,
    3,
    [],
    "x",
    {},
    {"pictures": 3},
    {"pictures": {}},
    {"classes": []},
    {"classes": [1, 2]},
    {"classes": "ab"},
    {"classes": ["a"]},
    {"classes": ["a"], "samples": [1], "correct": ["1"]},
    {"classes": ["a"], "samples": [1], "correct": [2]},
    {"classes": ["a"], "samples": [True], "correct": [True]},
    {"classes": ["a"], "samples": [-1], "correct": [-1]},
    {"classes": ["a"], "samples": [10**400], "correct": [0]},
    {"classes": ["a"], "samples": [1.5], "correct": [1]},
    {"classes": ["a", "b"], "samples": [1], "correct": [1]},
    {"classes": ["a"], "samples": {"a": 1}, "correct": {"a": 1}},
    {"classes": ["a"], "samples": [float("nan")], "correct": [float("inf")]},
]


@pytest.mark.parametrize(
    "content", ["", "{", "\xff", "[" * 100_000, '{"classes": [', *map(json.dumps, WRONG)]
)
def test_a_file_that_is_not_what_it_should_be(run: RunDir, content: str) -> None:
    run.figures.mkdir()
    for path in (
        run.evaluation("val"),
        run.evaluation("test"),
        run.samples,
        run.predictions,
        run.misclassified,
    ):
        path.write_bytes(content.encode("latin-1"))
    page = Page(write(run))
    for said in (
        "evaluation-val.json is not an evaluation",
        "evaluation-test.json is not an evaluation",
        *(f"{name}.json lists no pictures" for name in ("samples", "predictions", "misclassified")),
    ):
        assert f"figures/{said}: left out." in page.text
    assert "93.00% test accuracy" in page.text and not page.all("img")


def test_a_picture_that_is_not_one(run: RunDir) -> None:
    odd = [
        None,
        3,
        "x",
        [],
        {},
        {"png": encoded(png())},
        {"png": encoded(png()), "truth": 3, "predicted": []},
    ]
    write_json(run.samples, {"pictures": odd})
    write_json(
        run.misclassified,
        {
            "split": 3,
            "global_step": "x",
            "pictures": [*odd, mistake(probability="high", sample=-1)],
        },
    )
    page = Page(write(run))
    assert (
        "7 pictures of figures/samples.json" in page.text
        and "7 pictures of figures/misclassified.json" in page.text
    )
    assert [image["alt"] for image in page.all("img")] == ["cat, taken for dog"]


@pytest.mark.parametrize(
    "confusion",
    [
        [],
        [[1, 2], [3, 4]],
        [[1, 2, 3], [4, 5], [6, 7, 8]],
        [[1, 2, 3]] * 4,
        [3, 4, 5],
        "abc",
        {},
        True,
        [[1, 2, "3"]] * 3,
        [[1, 2, -3]] * 3,
    ],
)
def test_a_matrix_of_another_shape_is_left_out(run: RunDir, confusion: Any) -> None:
    evaluation(run, PETS, CONFUSION)
    change(run.evaluation("test"), confusion=confusion)
    page = Page(write(run))
    assert "cat 1,000 842 84.2% dog" in page.text
    assert "The confusion matrix does not fit the classes: left out." in page.text
    assert not page.all("td", "heat") and not page.all("rect")


def test_huge_numbers(run: RunDir) -> None:
    large = 10**15 - 1
    evaluation(run, PETS, [[large] * 3] * 3)
    change(run.evaluation("test"), global_step=1e308, epoch=1e200)
    write_json(
        run.misclassified,
        {
            "split": "test",
            "global_step": 1e400,
            "pictures": [mistake(probability=1e99, sample=1e300)],
        },
    )
    lines(
        run.metrics,
        [eval_row(200, 0.9, accuracy_top5=1e308), eval_row(300, 0.9, accuracy_top5=10**400)],
    )
    end(
        run,
        best={"metric": "accuracy", "value": 1e250, "global_step": 1e250, "test_accuracy": -1e250},
        skipped_pictures=1e250,
    )
    page = Page(write(run))
    assert "999,999,999,999,999" in page.text and "cat taken for dog Speed" in page.text
    end(run, best=[1], early_stopped="yes", skipped_pictures="many")
    page = Page(write(run))
    assert (
        "Best" not in page.text
        and "Early stopping" not in page.text
        and "could not be read" not in page.text
    )


def test_escapes_every_word(run: RunDir) -> None:
    for split, size in (("val", 3), ("test", 25)):
        evaluation(run, [f"{i}{HOSTILE}" for i in range(size)], square(size)[1], split)
        change(run.evaluation(split), epoch=HOSTILE, global_step=HOSTILE)
    write_json(run.samples, {"pictures": [{"png": encoded(png()), "truth": HOSTILE}]})
    odd = mistake(truth=HOSTILE, predicted=HOSTILE, probability=HOSTILE, sample=HOSTILE)
    for path in (run.predictions, run.misclassified):
        write_json(path, {"split": HOSTILE, "global_step": HOSTILE, "pictures": [odd]})
    lines(run.metrics, [eval_row(200, 0.9, split=HOSTILE, accuracy_top5=HOSTILE)])
    end(
        run,
        best={"split": HOSTILE, "metric": HOSTILE, "value": 0.5, "global_step": HOSTILE},
        skipped_pictures=HOSTILE,
    )
    page = Page(write(run))
    assert "<script" not in page.source and page.source.count("<img") == 3
    assert page.all("script") == [] and not any(
        a.startswith("on") for _, attributes in page.tags for a in attributes
    )
    assert page.source.count("</style>") == 1
    assert page.text.count("<script>alert(1)</script>") >= 3 * 2 + 5
