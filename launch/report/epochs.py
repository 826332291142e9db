"""What a run learnt, epoch by epoch: mean train losses by the step of the epoch, as a table and as
lines, and the errors.

Imports only the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launch.report import chart
from launch.report.html import section, table, text
from launch.report.run_data import Facts, Row
from launch.words import NONE, as_float, finite, number, percent, plural, seconds, shown

MOST_COLUMNS = 12  # of the table: more rows of an epoch are put together
MOST_OPEN, MOST_EPOCHS = 12, 200  # epochs of a table that is not folded, and of one at all
SHADES = 5  # c0 to c4 of launch/report/style.py


@dataclass(frozen=True)
class Stretch:
    """A train row: means over the samples of some steps. end: the last one, counted from the
    beginning of the epoch.
    """

    end: int
    global_step: int
    samples: float
    loss: float
    accuracy: float | None


def epochs(run: Facts) -> str:
    """The section; empty where there is one epoch with one row, of which the curves tell all."""
    found = read(run.train)
    if sum(map(len, found.values())) < 2:
        return ""
    plots = [_errors(run, found)] if len(found) > 1 else []
    plots += [_losses(found)] if plots and max(map(len, found.values())) > 1 else []
    figures = "".join(chart.figure(plot) for plot in plots)
    return section(
        "Epochs", f'<div class="charts">{figures}</div>' if figures else "", _table(run, found)
    )


def read(rows: list[Row]) -> dict[int, list[Stretch]]:
    """The rows of each epoch; since none is of two epochs, an epoch begins where the one before it
    ends.
    """
    found: dict[int, list[Stretch]] = {}
    before = begin = 0
    for row in sorted(rows, key=lambda r: float(r["global_step"])):
        step, epoch, samples = (finite(row.get(key)) for key in ("global_step", "epoch", "samples"))
        # null: it was not finite
        loss = math.nan if row.get("loss", "") is None else row.get("loss")
        if (
            step is None
            or epoch is None
            or samples is None
            or isinstance(loss, bool)
            or not isinstance(loss, int | float)
        ):
            continue
        # rows of no run of ours
        if not (before + 1 <= step < 1e12 and 0 < epoch < 1e9 and samples > 0):
            continue
        if int(epoch) not in found:
            begin = before
        before = int(step)
        stretch = Stretch(
            before - begin, before, samples, as_float(loss), finite(row.get("accuracy"))
        )
        found.setdefault(int(epoch), []).append(stretch)
    return found


def mean_loss(some: list[Stretch]) -> float | None:
    """Over the samples; None of no stretch."""
    return sum(s.loss * s.samples for s in some) / sum(s.samples for s in some) if some else None


def mean_accuracy(some: list[Stretch]) -> float | None:
    """Over the samples; None where a stretch has none, as of numbers."""
    known = [(s.accuracy, s.samples) for s in some if s.accuracy is not None]
    return (
        sum(a * n for a, n in known) / sum(n for _, n in known)
        if len(known) == len(some) > 0
        else None
    )


def width(found: dict[int, list[Stretch]]) -> int:
    """Steps of a column: those of a row, or of so many rows that the longest epoch has no more than
    MOST_COLUMNS.
    """
    row = next(iter(found.values()))[0].end
    rows = math.ceil(_longest(found) / row)
    return row * math.ceil(rows / MOST_COLUMNS)


def _alike(found: dict[int, list[Stretch]]) -> bool:
    """Whether the rows of all epochs end at the same steps: those of an older trainer came each so
    many steps of the run.
    """
    row = next(iter(found.values()))[0].end
    return all(s.end % row == 0 for some in found.values() for s in some[:-1])


def _longest(found: dict[int, list[Stretch]]) -> int:
    return max(stretches[-1].end for stretches in found.values())


def _errors(run: Facts, found: dict[int, list[Stretch]]) -> chart.Chart:
    """1 - accuracy, as the tutorials on transfer learning draw it."""
    lines: dict[str, list[chart.Point]] = {"train": [], "val": [], "test": []}
    lines["train"] = [
        (float(e), 1 - a) for e, some in found.items() if (a := mean_accuracy(some)) is not None
    ]
    for row in run.evals:
        epoch, accuracy, split = (
            finite(row.get("epoch")),
            finite(row.get("accuracy")),
            row.get("split"),
        )
        if epoch is not None and accuracy is not None and split in ("val", "test"):
            lines[split].append((epoch, 1 - accuracy))
    series = [
        chart.Series(split, sorted(points), split) for split, points in lines.items() if points
    ]
    return chart.Chart("Error by epoch", series, percent=True, across="epoch", unit="epoch")


def _losses(found: dict[int, list[Stretch]]) -> chart.Chart:
    """A line an epoch, of some from the first to the last one where there are more than colours."""
    every = list(found)
    some = (
        [every[i * (len(every) - 1) // (SHADES - 1)] for i in range(SHADES)]
        if len(every) > SHADES
        else every
    )
    lines = [[(float(s.end), s.loss) for s in found[epoch]] for epoch in some]
    series = [
        chart.Series(f"epoch {epoch:,}", line, f"c{i}")
        for i, (epoch, line) in enumerate(zip(some, lines, strict=True))
    ]
    return chart.Chart(
        "Train loss within an epoch", series, across="step of the epoch", may_log=True
    )


def _table(run: Facts, found: dict[int, list[Stretch]]) -> str:
    """An epoch a row, as PyTorch's tutorial prints its running loss; and what other tutorials print
    of an epoch.
    """
    steps, longest, times = width(found), _longest(found), _seconds(run, found)
    ends = [k * steps for k in range(1, math.ceil(longest / steps) + 1)]
    columns = (
        {f"{min(end, longest):,}": end for end in ends} if len(ends) > 1 and _alike(found) else {}
    )
    heads = ["Epoch", *columns, "Whole epoch", "Accuracy", "Time"]
    rows = []
    for epoch, some in list(found.items())[-MOST_EPOCHS:]:
        parts = [[s for s in some if end - steps < s.end <= end] for end in columns.values()]
        losses = [_told(mean_loss(part)) for part in (*parts, some)]
        rows.append(
            [
                f"{epoch:,}",
                *losses,
                shown(mean_accuracy(some), percent),
                shown(times[epoch], seconds),
            ]
        )
    kept = [
        i
        for i, head in enumerate(heads)
        if head not in ("Accuracy", "Time") or any(row[i] != NONE for row in rows)
    ]
    told = table(
        [(heads[i], "figure" if i else "short") for i in kept],
        [[row[i] for i in kept] for row in rows],
        "Epochs",
    )
    time = " Time: without evaluations." if len(heads) - 1 in kept else ""
    body = f'<p class="note under">{text(_means(steps, longest, len(columns)))}{time}</p>{told}'
    name = "Mean train loss by epoch" + (" and step of the epoch" if columns else "")
    if len(found) <= MOST_OPEN:
        return f'<div class="losses"><h3>{name}</h3>{body}</div>'
    count = f"the last {len(rows)} of {len(found):,}" if len(rows) < len(found) else f"{len(rows)}"
    return f"<details><summary>{name} ({count})</summary>{body}</details>"


def _told(loss: float | None) -> str:
    """1.820, 9.12e-5: as many decimals as the tutorial prints, of a small loss as many digits as it
    needs.
    """
    if loss is None:
        return NONE
    return f"{loss:.3f}" if 0.01 <= abs(loss) < 1e4 else number(loss)


def _means(steps: int, longest: int, columns: int) -> str:
    """What the means are over."""
    if not columns:
        return "Means over the epoch's samples, as they trained."
    rest = longest - steps * (columns - 1)
    last = (
        f"; in the last column of the {plural(rest, 'step')} that the epoch has left"
        if rest < steps
        else ""
    )
    return (
        f"Means over the samples, as they trained, of the {plural(steps, 'step')} that end at the"
        f" heading's{last}."
    )


def _seconds(run: Facts, found: dict[int, list[Stretch]]) -> dict[int, float | None]:
    """How long the steps of each epoch took; None where a row has no speed, or an attempt took over
    within the epoch: the speed of its first row is of fewer steps than the row.
    """
    speeds = {
        finite(row.get("global_step")): finite(row.get("images_per_s"))
        for a in run.attempts
        for row in a.timing
    }
    taken_over = [step for step, _ in run.continues()]
    times: dict[int, float | None] = {}
    for epoch, some in found.items():
        known = [s.samples / speed for s in some if (speed := speeds.get(s.global_step))]
        begin, end = some[-1].global_step - some[-1].end, some[-1].global_step
        whole = len(known) == len(some) and not any(begin < step < end for step in taken_over)
        times[epoch] = sum(known) if whole else None
    return times
