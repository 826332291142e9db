"""An evaluation class by class: how much of each is right, and what it is taken for.

Imports only the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from launch.report.html import Html, section, table, text
from launch.report.run_data import Facts, as_row
from launch.words import NONE, finite, number, percent

SPLITS = {"test": "Test set", "val": "Validation set"}  # in the order of the page
# a table of more classes than the first shows so many of the best and of the worst
MOST_ROWS, ENDS = 30, 15
# classes of a matrix with numbers in its cells, and of one at all
MOST_NUMBERS, MOST_CELLS = 20, 100
MOST_NAMED = 5  # confusions named below the matrix
MOST_LETTERS = 16  # of a class beside the drawn matrix
CELL, LETTER = 10, 5  # user units of the drawn matrix: a cell's side, a letter's width


@dataclass(frozen=True)
class Evaluation:
    """`figures/evaluation-<split>.json`, each list with one entry a class. confusion: rows are the
    truth.
    """

    split: str
    place: str  # where in the training, in words
    classes: list[str]
    samples: list[int]
    correct: list[int]
    confusion: list[list[int]] | None
    misfit: bool  # the file has something else for a matrix
    iou: list[float | None] | None = None  # of masks

    def accuracy(self, i: int) -> float | None:
        return self.correct[i] / self.samples[i] if self.samples[i] else None

    def confusions(self, i: int) -> list[tuple[int, int, int]]:
        """(times, truth, prediction) of class i where they differ, the most frequent first."""
        row = self.confusion[i] if self.confusion else []
        found = [(times, i, j) for j, times in enumerate(row) if times and j != i]
        return sorted(found, key=lambda c: -c[0])

    def said(self, i: int, j: int) -> str:
        """One cell of the confusion matrix in words."""
        row = (self.confusion or [])[i]
        what = (
            f"{self.classes[i]}, right"
            if i == j
            else f"{self.classes[i]}, taken for {self.classes[j]}"
        )
        return f"{what}: {row[j]:,} of {sum(row):,} ({percent(row[j] / (sum(row) or 1), 1)})"


def read(split: str, found: Any) -> Evaluation | None:
    """The evaluation in a file's content, None where it is not one.

    A matrix of another shape is left out.
    """
    row = as_row(found)
    classes, matrix = row.get("classes"), row.get("confusion")
    if (
        not isinstance(classes, list)
        or not classes
        or not all(isinstance(name, str) for name in classes)
    ):
        return None
    samples, correct = (counts(row.get(key), len(classes)) for key in ("samples", "correct"))
    if (
        samples is None
        or correct is None
        or any(c > s for c, s in zip(correct, samples, strict=True))
    ):
        return None
    lines = [counts(line, len(classes)) for line in matrix] if isinstance(matrix, list) else []
    square = [line for line in lines if line is not None]
    fits = len(square) == len(lines) == len(classes)
    step, epoch = finite(row.get("global_step")), finite(row.get("epoch"))
    place = [
        f"step {step:,.0f}" if step is not None else "",
        f"epoch {number(epoch)}" if epoch is not None else "",
    ]
    drawn, said = (
        square if fits and len(classes) <= MOST_CELLS else None,
        ", ".join(p for p in place if p),
    )
    shares = row.get("iou")
    iou = (
        [finite(v) for v in shares]
        if isinstance(shares, list) and len(shares) == len(classes)
        else None
    )
    return Evaluation(
        split, said, classes, samples, correct, drawn, matrix is not None and not fits, iou
    )


def counts(value: Any, length: int) -> list[int] | None:
    """A list of `length` whole numbers that something was counted to."""
    if not isinstance(value, list) or len(value) != length:
        return None
    return value if all(type(n) is int and 0 <= n < 10**15 for n in value) else None


def by_class(run: Facts) -> str:
    """The newest evaluation of each split that left one; the second is folded.

    Empty where there is none.
    """
    parts: list[str] = []
    notes: list[str] = []
    for split, name in SPLITS.items():
        if (file := f"evaluation-{split}.json") not in run.figures:
            continue
        if spoilt := finite(as_row(run.figures[file]).get("not_finite")):
            said = (
                f"{name}: the outputs of {spoilt:,.0f} samples were not finite, so none is right or"
                " wrong."
            )
            notes.append(f'<p class="note">{said}</p>')
            continue
        if (found := read(split, run.figures[file])) is None:
            notes.append(f'<p class="note">figures/{file} is not an evaluation: left out.</p>')
            continue
        body = _split(found)
        parts.append(
            f"<details><summary>{name}</summary>{body}</details>"
            if parts
            else f"<h3>{name}</h3>{body}"
        )
    return section("By class", *parts, *notes) if parts or notes else ""


def _split(found: Evaluation) -> str:
    right, of = sum(found.correct), sum(found.samples)
    share = f" ({percent(right / of)})" if of else ""
    said = f"{right:,} of {of:,} right{share}{f' at {found.place}' if found.place else ''}."
    pixels = "Samples are pixels that have a class. " if found.iou else ""
    return f'<p class="note under">{pixels}{text(said)}</p>{_tables(found)}{_matrix(found)}'


def _tables(found: Evaluation) -> str:
    """All classes as they are sorted, or the best and the worst of many."""
    every = range(len(found.classes))
    name = f"{SPLITS[found.split]} by class"
    if len(every) <= MOST_ROWS:
        return _table(found, list(every), name)
    ranked = sorted(
        (i for i in every if found.samples[i]), key=lambda i: -(found.accuracy(i) or 0.0)
    )
    best, worst = ranked[:ENDS], ranked[ENDS:][-ENDS:][::-1]
    parts = []
    for word, some in (("best", best), ("worst", worst)):
        said = f"The {len(some)} {word} of {len(every):,} classes"
        parts.append(f"<h4>{said}</h4>{_table(found, some, f'{name}: {word}')}" if some else "")
    return "".join(parts)


def _table(found: Evaluation, some: list[int], name: str) -> str:
    heads = [("Class", "name"), ("Samples", "figure"), ("Correct", "figure"), ("Accuracy", "share")]
    if found.iou:
        heads.append(("IoU", "share"))
    if found.confusion:
        heads.append(("Most often taken for", "name"))
    rows = []
    for i in some:
        row = [
            found.classes[i],
            f"{found.samples[i]:,}",
            f"{found.correct[i]:,}",
            _rate(found.accuracy(i)),
        ]
        if found.iou:
            row.append(_rate(found.iou[i]))
        if found.confusion:
            most = found.confusions(i)[:1]
            row += [
                Html(f'{text(found.classes[j])}, <span class="soft">{_times(times)}</span>')
                for times, _, j in most
            ] or [NONE]
        rows.append(row)
    return table(heads, rows, name)


def _rate(share: float | None) -> str:
    """The share in figures and as a bar."""
    if share is None:
        return NONE
    bar = f'<span class="bar" aria-hidden="true"><span style="width:{share:.1%}"></span></span>'
    return Html(f'<span class="rate"><span>{percent(share, 1)}</span>{bar}</span>')


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _matrix(found: Evaluation) -> str:
    """The confusion matrix, as a table with numbers or, for many classes, as a picture."""
    if found.misfit:
        return '<p class="note">The confusion matrix does not fit the classes: left out.</p>'
    if not found.confusion:
        return ""
    legend = "".join(
        f'<li><span class="heat {key}" style="--share:1"></span>{key}</li>'
        for key in ("right", "wrong")
    )
    picture = _numbers(found) if len(found.classes) <= MOST_NUMBERS else _picture(found)
    return (
        '<figure class="confusion"><figcaption><h4>Confusion matrix</h4><span class="scale">rows:'
        " truth, columns: prediction; the deeper, the larger the share of the row</span><ul"
        f' class="legend">{legend}</ul></figcaption>{picture}{_most_often(found)}</figure>'
    )


def _most_often(found: Evaluation) -> str:
    every = sorted(
        (c for i in range(len(found.classes)) for c in found.confusions(i)), key=lambda c: -c[0]
    )
    said = [
        f"{found.classes[i]} taken for {found.classes[j]}, {_times(times)}"
        for times, i, j in every[:MOST_NAMED]
    ]
    return f'<p class="note">{text("Most often: " + "; ".join(said) + ".")}</p>' if said else ""


def _depth(row: list[int], j: int) -> float:
    """How deep a cell's colour is, 0 to 1. The power lets 1 % of a row be seen beside 99 %."""
    return float((row[j] / (sum(row) or 1)) ** 0.4)


def _numbers(found: Evaluation) -> str:
    """As a table: cells that a screen reader can walk, each with its share in a title."""
    classes, confusion = found.classes, found.confusion or []
    # Columns are equally wide: for the longest number, and for the longest name unless that is too
    # wide for the page.
    narrow_rem = max(
        2.75, 0.5 * max(len(f"{times:,}") for line in confusion for times in line) + 0.75
    )
    wide_rem = max(narrow_rem, 0.5 * max(len(name) for name in classes) + 0.75)
    on_end, column_rem = (
        (' class="on-end"', narrow_rem) if wide_rem * len(classes) > 60 else ("", wide_rem)
    )
    names = [f'<span title="{escape(name)}">{text(name)}</span>' for name in classes]
    heads = "".join(f'<th scope="col"{on_end}>{name}</th>' for name in names)
    rows = []
    for i, line in enumerate(confusion):
        cells = "".join(
            f'<td class="heat {"right" if i == j else "wrong" if times else "none"}"'
            f' style="--share:{_depth(line, j):.2f}"'
            f' title="{escape(found.said(i, j))}">{times:,}</td>'
            for j, times in enumerate(line)
        )
        rows.append(f'<tr><th scope="row" class="truth">{names[i]}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" aria-label="{SPLITS[found.split]}: confusion matrix"'
        ' tabindex="0">'
        '<table class="matrix"'
        f' style="--columns:{len(classes)};--column:{column_rem:g}rem;--narrow:{narrow_rem:g}rem">'
        '<thead><tr><th scope="col" rowspan="2" class="truth">Truth</th>'
        f'<th scope="colgroup" colspan="{len(classes)}" class="predicted">Predicted</th></tr>'
        f"<tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _picture(found: Evaluation) -> str:
    """As SVG: a square for each pair of classes that occurred, its numbers in a title."""
    short = [
        name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"
        for name in found.classes
    ]
    begin, size = max(60, LETTER * max(map(len, short)) + 8), len(short) * CELL
    names = [
        f'<text x="{begin - 4}" y="{begin - 14}">predicted →</text><text x="{begin - 4}"'
        f' y="{begin - 5}">truth ↓</text>'
    ]
    cells = []
    for i, line in enumerate(found.confusion or []):
        at, middle = begin + i * CELL, begin + i * CELL + CELL // 2
        names.append(f'<text x="{begin - 4}" y="{middle}">{text(short[i])}</text>')
        names.append(
            '<text class="column"'
            f' transform="translate({middle},{begin - 4})rotate(-90)">{text(short[i])}</text>'
        )
        for j, times in enumerate(line):
            if times:
                right = ' class="right"' if i == j else ""
                cells.append(
                    f'<rect{right} x="{begin + j * CELL}" y="{at}"'
                    f' fill-opacity="{_depth(line, j):.2f}">'
                    f"<title>{escape(found.said(i, j))}</title></rect>"
                )
    name, whole = f"confusion-{found.split}", begin + size
    return (
        f'<div class="scroll" role="region" aria-label="{SPLITS[found.split]}: confusion matrix"'
        ' tabindex="0">'
        f'<svg class="cells wrong" viewBox="0 0 {whole} {whole}"'
        f' style="max-width:{whole * 1.6:.0f}px" role="img" '
        f'aria-labelledby="{name}-t {name}-d"><title id="{name}-t">Confusion matrix of {len(short)}'
        " classes</title>"
        f'<desc id="{name}-d">{escape(_summary(found))}</desc>'
        f'<path class="ground" d="M{begin},{begin}h{size}v{size}h-{size}z"/>'
        f"{''.join(names)}{''.join(cells)}</svg></div>"
    )


def _summary(found: Evaluation) -> str:
    return (
        f"{sum(found.correct):,} of {sum(found.samples):,} are right, on the diagonal from the"
        " upper left."
    )
