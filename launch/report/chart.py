"""Line charts and sparklines as inline SVG, from points; knows nothing of runs.

Imports only the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from html import escape

from launch.words import finite, number, percent, plural

# (global_step, or what else lies across, value); the value may be NaN or infinite
Point = tuple[float, float]

WIDTH, HEIGHT = 480, 264  # user units; the page scales the whole picture
LEFT, RIGHT, TOP, BOTTOM = 54, 68, 14, 42  # margins; the right one holds the last values
LABEL_GAP = 16  # least distance between the last values' baselines
MOST_POINTS = 500  # of one line
MOST_DOTS = 40  # a line with so few points shows each of them
LOG_FROM = 50  # a largest value so many times the smallest asks for a log axis


@dataclass(frozen=True)
class Series:
    """A line. `style` is a CSS class of launch/report/style.py, never a text from a file."""

    name: str
    points: list[Point]
    style: str = "plain"


@dataclass(frozen=True)
class Chart:
    """What one chart shows.

    `may_log`: a log axis where all values are positive and their range is large. `across`: the name
    of the horizontal axis; `unit`: a place on it is told by, as in step 100.
    """

    title: str
    series: list[Series]
    # (global_step, what happened there)
    marks: list[tuple[float, str]] = field(default_factory=list)
    percent: bool = False
    may_log: bool = False
    across: str = "global step"
    unit: str = "step"

    def text(self, value: float) -> str:
        return percent(value, 1) if self.percent and math.isfinite(value) else number(value)


@dataclass(frozen=True)
class Axis:
    """Values lo..hi onto user units start..end."""

    lo: float
    hi: float
    start: float
    end: float
    ticks: list[float]
    log: bool = False

    def at(self, value: float) -> float:
        lo, hi, v = (math.log(x) if self.log else x for x in (self.lo, self.hi, value))
        return self.start + (v - lo) / (hi - lo) * (self.end - self.start)


def nice_step(span: float, count: int, factors: tuple[float, ...] = (1, 2, 2.5, 5, 10)) -> float:
    """The smallest of `factors` times a power of ten that divides `span` into at most `count`
    parts.
    """
    power = 10.0 ** math.floor(math.log10(span / count))
    # The margin: 1.0000000001 is one, and not a reason for the next larger step.
    return next(f * power for f in factors if f * power * count >= span * (1 - 1e-9))


def step_axis(lo: float, hi: float, start: float, end: float) -> Axis:
    """global_step: from zero to the last one, ticks at whole steps."""
    lo, hi = min(0.0, lo), max(1.0, hi)
    step = max(1.0, nice_step(hi - lo, 5, (1, 2, 5, 10)))
    return Axis(
        lo,
        hi,
        start,
        end,
        [k * step for k in range(math.ceil(lo / step), math.floor(hi / step) + 1)],
    )


def value_axis(lo: float, hi: float, start: float, end: float, most: float = math.inf) -> Axis:
    """From one round tick to another; a flat line gets room around it, but not above `most` or
    across zero.
    """
    if hi - lo <= 1e-9 * max(abs(lo), abs(hi), 1e-280):
        room = abs(lo) / 10 or 0.1
        lo, hi = (max(0.0, lo - room) if lo >= 0 else lo - room), min(max(most, hi), hi + room)
    step = nice_step(hi - lo, 5)
    first, last = math.floor(lo / step + 1e-9), math.ceil(hi / step - 1e-9)  # 0.1 * 3 is not 0.3
    return Axis(first * step, last * step, start, end, [k * step for k in range(first, last + 1)])


def log_axis(lo: float, hi: float, start: float, end: float) -> Axis:
    """A log axis of positive values from one of 1, 2, 5 times a power of ten to another; ticks
    there, or at powers.
    """
    powers = range(math.floor(math.log10(lo)) - 1, math.ceil(math.log10(hi)) + 2)
    round_ones = [m * 10.0**k for k in powers for m in (1, 2, 5)]
    lo = max(t for t in round_ones if t <= lo * (1 + 1e-9))
    hi = min(t for t in round_ones if t >= hi * (1 - 1e-9))
    ticks = [t for t in round_ones if lo <= t <= hi]
    if len(ticks) > 9:
        ticks = [10.0**k for k in powers if lo <= 10.0**k <= hi]
        ticks = ticks[:: math.ceil(len(ticks) / 7)]
    return Axis(lo, hi, start, end, ticks, log=True)


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points that show what all of them do: first and last, and of each bucket the
    lowest, the highest and the first that is not finite, so that no spike and no gap is lost.
    """
    if len(points) <= most:
        return points
    inner = points[1:-1]
    buckets = (most - 2) // 3
    kept = [points[0]]
    for b in range(buckets):
        bucket = range(len(inner) * b // buckets, len(inner) * (b + 1) // buckets)
        real = [i for i in bucket if finite(inner[i][1]) is not None]
        keep = (
            {min(real, key=lambda i: inner[i][1]), max(real, key=lambda i: inner[i][1])}
            if real
            else set()
        )
        keep.update(next(([i] for i in bucket if finite(inner[i][1]) is None), []))
        kept += [inner[i] for i in sorted(keep)]
    return [*kept, points[-1]]


def path(points: list[Point], x: Axis, y: Axis) -> str:
    """SVG path data; a value that is not finite is a gap, and a point between two gaps a dot (`h0`
    with round caps).
    """
    parts: list[str] = []
    pen = False
    for i, (step, value) in enumerate(points):
        if finite(value) is None:
            pen = False
            continue
        alone = not pen and (i + 1 == len(points) or finite(points[i + 1][1]) is None)
        parts.append(
            f"{'L' if pen else 'M'}{x.at(step):.1f},{y.at(value):.1f}{'h0' if alone else ''}"
        )
        pen = True
    return "".join(parts)


def figure(chart: Chart) -> str:
    """The chart with its legend and its notes as a <figure>; empty where no series has a point."""
    chart = replace(chart, series=[s for s in chart.series if s.points])
    if not chart.series:
        return ""
    values = [v for s in chart.series for _, v in s.points if finite(v) is not None]
    log = (
        chart.may_log
        and bool(values)
        and min(values) > 1e-280
        and max(values) >= LOG_FROM * min(values)
    )
    scale = '<span class="scale">log scale</span>' if log else ""
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in _notes(chart))
    picture = _svg(chart, values, log=log) if values else ""
    return (
        f'<figure class="chart"><figcaption><h3>{escape(chart.title)}</h3>{scale}'
        f"{_legend(chart)}</figcaption>"
        f"{picture}{notes}</figure>"
    )


def _legend(chart: Chart) -> str:
    swatch = '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true">{}</svg>'
    items = []
    for s in chart.series:
        dot = '<circle cx="11" cy="5" r="3"/>' if len(s.points) <= MOST_DOTS else ""
        picture = swatch.format(f'<path class="line" d="M1,5H21"/>{dot}')
        items.append(f'<li class="{s.style}">{picture}{escape(s.name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>' if len(items) > 1 else ""


def _notes(chart: Chart) -> list[str]:
    notes = []
    for s in chart.series:
        if odd := [(step, v) for step, v in s.points if finite(v) is None]:
            rows = "" if len(odd) == 1 else f"{len(odd):,} rows are not finite, the first is "
            notes.append(
                f"{s.name}: {rows}{number(odd[0][1])} at {chart.unit} {odd[0][0]:,.0f} (a cross at"
                " the upper edge)."
            )
    return notes


def _summary(chart: Chart) -> str:
    """The chart in words, for those who do not see it."""
    said = []
    for s in chart.series:
        real = [p for p in s.points if finite(p[1]) is not None]
        if not real:
            said.append(f"{s.name}: no finite value.")
            continue
        (first, v0), (last, v1) = real[0], real[-1]
        low, high = min(v for _, v in real), max(v for _, v in real)
        said.append(
            f"{s.name}: {chart.text(v0)} at {chart.unit} {first:,.0f}, {chart.text(v1)} at"
            f" {chart.unit} {last:,.0f}; lowest {chart.text(low)}, highest {chart.text(high)},"
            f" {plural(len(real), 'value')}."
        )
    return " ".join(said)


def _svg(chart: Chart, values: list[float], *, log: bool) -> str:
    last = [(s, p) for s in chart.series if (p := _last(s)) is not None]
    labels = [(s, p, chart.text(p[1])) for s, p in last]
    steps = [step for s in chart.series for step, _ in s.points]
    x = step_axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    span = (min(values), max(values), HEIGHT - BOTTOM, TOP)
    y = log_axis(*span) if log else value_axis(*span, most=1.0 if chart.percent else math.inf)
    name = "chart-" + "".join(c if c.isalnum() else "-" for c in chart.title.lower())
    body = [
        grid(chart, x, y),
        *(_mark(x, y, at, what) for at, what in chart.marks if x.lo <= at <= x.hi),
    ]
    body += [_line(chart, s, x, y) for s in chart.series]
    body += [_ends(labels, x, y)]
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t'
        f' {name}-d"><title id="{name}-t">{escape(chart.title)} over'
        f" {escape(chart.across)}</title><desc"
        f' id="{name}-d">{escape(_summary(chart))}</desc>{"".join(body)}</svg>'
    )


def _last(series: Series) -> Point | None:
    return next((p for p in reversed(series.points) if finite(p[1]) is not None), None)


def _tick(value: float, step: float, *, as_percent: bool) -> str:
    """A tick with the decimals that tell it from its neighbours, and no more than the
    axis needs.
    """
    if as_percent:
        value, step = value * 100, step * 100
    value = round(value / step) * step  # 0.30000000000000004
    if value and (abs(value) >= 1e6 or step < 1e-4):
        return number(value)
    decimals = next((d for d in range(8) if abs(round(step, d) - step) < step * 1e-6), 8)
    return f"{value:,.{decimals}f}{'%' if as_percent else ''}"


def grid(chart: Chart, x: Axis, y: Axis) -> str:
    """Both axes with their ticks and words."""
    right = f"{x.end:.1f}"
    parts = []
    for v in y.ticks:
        at = f"{y.at(v):.1f}"
        text = number(v) if y.log else _tick(v, y.ticks[1] - y.ticks[0], as_percent=chart.percent)
        parts.append(
            f'<path class="grid" d="M{LEFT},{at}H{right}"/><text class="y" x="{LEFT - 7}"'
            f' y="{at}">{text}</text>'
        )
    floor = HEIGHT - BOTTOM
    step = x.ticks[1] - x.ticks[0] if len(x.ticks) > 1 else 1.0
    for v in x.ticks:
        at = f"{x.at(v):.1f}"
        text = _tick(v, step, as_percent=False)
        parts.append(
            f'<path class="axis" d="M{at},{floor}v4"/><text class="x" x="{at}"'
            f' y="{floor + 17}">{text}</text>'
        )
    parts.append(f'<path class="axis" d="M{LEFT},{TOP}V{floor}H{right}"/>')
    parts.append(
        f'<text class="x name" x="{(LEFT + x.end) / 2:.1f}"'
        f' y="{HEIGHT - 5}">{escape(chart.across)}</text>'
    )
    return "".join(parts)


def _mark(x: Axis, y: Axis, at: float, what: str) -> str:
    return (
        '<path class="mark"'
        f' d="M{x.at(at):.1f},{y.end}V{y.start}"><title>{escape(what)}</title></path>'
    )


def _line(chart: Chart, series: Series, x: Axis, y: Axis) -> str:
    kept = thin(series.points)
    dense = " dense" if len(kept) < len(series.points) else ""
    parts = [f'<path class="line{dense}" d="{path(kept, x, y)}"/>']
    for step, value in kept:
        said = (
            f"<title>{escape(series.name)}, {escape(chart.unit)} {step:,.0f}:"
            f" {chart.text(value)}</title>"
        )
        if finite(value) is None:
            parts.append(
                '<path class="odd"'
                f' d="M{x.at(step) - 3:.1f},{y.end - 3}l6,6m0,-6l-6,6">{said}</path>'
            )
        elif len(series.points) <= MOST_DOTS:
            parts.append(
                f'<circle cx="{x.at(step):.1f}" cy="{y.at(value):.1f}" r="2.6">{said}</circle>'
            )
    return f'<g class="{series.style}">{"".join(parts)}</g>'


def _ends(labels: list[tuple[Series, Point, str]], x: Axis, y: Axis) -> str:
    """The last value beside each line's end; where two ends are close, the labels move apart."""
    order = sorted(labels, key=lambda label: y.at(label[1][1]))
    parts = []
    above = -math.inf
    for below, (s, (_, value), text) in zip(range(len(order) - 1, -1, -1), order, strict=True):
        # Down from the label above, but leaving room for those below.
        above = min(max(y.at(value), above + LABEL_GAP), y.start - below * LABEL_GAP)
        parts.append(
            f'<text class="end {s.style}" x="{x.end + 9:.1f}" y="{above:.1f}">{escape(text)}</text>'
        )
    return "".join(parts)


def sparkline(values: list[float], top: float, width: int = 120, height: int = 26) -> str:
    """A small line from zero to `top`, without words: the numbers stand beside it."""
    points = [(float(i), v) for i, v in enumerate(values)]
    if not any(finite(v) for v in values) or top <= 0:
        return ""
    x = Axis(0, max(1, len(values) - 1), 2, width - 2, [])
    y = Axis(0, top, height - 2, 2, [])
    line = path(thin(points, 100), x, y)
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" aria-hidden="true">'
        f'<path class="axis" d="M0,{height - 1}H{width}"/><path class="line" d="{line}"/></svg>'
    )
