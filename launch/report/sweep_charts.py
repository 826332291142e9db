"""The curves of many points in one picture: thin lines, coloured by an axis of the sweep, and the
best one on top of them.

Imports the standard library and its neighbours of launch.report only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from launch.report import chart
from launch.report.chart import BOTTOM, HEIGHT, LEFT, LOG_FROM, RIGHT, TOP, WIDTH, Axis, Chart
from launch.report.sweep_data import SEED, Point, Sweep, axis_value
from launch.words import finite, plural

SHADES = 5  # c0 to c4 of launch/report/style.py
MOST_ALL_POINTS = 6000  # of all lines of a picture
# a loss that grows to more than so many times the largest first one leaves the picture
ROOM = 1.5


@dataclass(frozen=True)
class Line:
    """The curve of one point. `style` is a CSS class of launch/report/style.py."""

    name: str
    points: list[chart.Point]
    style: str


@dataclass(frozen=True)
class Shades:
    """Which colour a point's line has, and what each colour means."""

    of: Callable[[Point], str]
    legend: list[tuple[str, str]]  # (CSS class, what it stands for)


def shades(sweep: Sweep) -> Shades:
    """By the first axis besides the seed that has few values, or whose values are numbers: these in
    groups of equal size.
    """
    for axis in sweep.axes():
        values = list({p.value(axis): p.axes.get(axis) for p in sweep.points}.values())
        numbers = all(finite(v) is not None for v in values)
        if axis == SEED or len(values) < 2 or (len(values) > SHADES and not numbers):
            continue
        ordered = sorted(values, key=float) if numbers else values  # type: ignore[arg-type]
        count = min(SHADES, len(values))
        groups = [
            ordered[len(ordered) * g // count : len(ordered) * (g + 1) // count]
            for g in range(count)
        ]
        # two values take the ends of the scale, three its ends and its middle
        styles = [f"c{round(g * (SHADES - 1) / (count - 1))}" for g in range(count)]
        style_of = {
            axis_value(v): style for group, style in zip(groups, styles, strict=True) for v in group
        }
        name = sweep.names()[axis]
        legend = [
            (
                style,
                f"{name} {axis_value(group[0])}"
                + (f" to {axis_value(group[-1])}" if len(group) > 1 else ""),
            )
            for group, style in zip(groups, styles, strict=True)
        ]
        return Shades(lambda p, axis=axis, style_of=style_of: style_of[p.value(axis)], legend)  # type: ignore[misc]
    return Shades(lambda p: "plain", [("plain", "a point")])


@dataclass(frozen=True)
class Plot:
    """What all lines of a figure are drawn in.

    top: the highest value that is drawn as it is. most: points of a line.
    """

    chart: Chart
    x: Axis
    y: Axis
    top: float
    most: int


def figure(
    title: str,
    lines: list[Line],
    best: Line | None,
    legend: list[tuple[str, str]],
    *,
    percent: bool = False,
) -> str:
    """All lines as a <figure>, empty where none has a point. best: drawn last, thick, and with its
    last value.
    """
    lines, best = [line for line in lines if line.points], best if best and best.points else None
    finite_ones = [v for line in lines for _, v in line.points if finite(v) is not None]
    if not finite_ones:
        return ""
    low, high, left_out = _range(lines, finite_ones, percent=percent)
    log = not percent and low > 1e-280 and high >= LOG_FROM * low
    span = (low, high, HEIGHT - BOTTOM, TOP)
    y = chart.log_axis(*span) if log else chart.value_axis(*span, most=1.0 if percent else math.inf)
    steps = [step for line in lines for step, _ in line.points]
    x = chart.step_axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    drawing = Chart(title, [], percent=percent)
    most = max(40, MOST_ALL_POINTS // len(lines))
    plot = Plot(drawing, x, y, high, most)
    body = [
        chart.grid(drawing, x, y),
        *(_line(line, "one", plot) for line in lines if line is not best),
    ]
    if best:
        body += [_line(best, "best", plot), _end(best, plot)]
    name = "bundle-" + "".join(c if c.isalnum() else "-" for c in title.lower())
    scale = '<span class="scale">log scale</span>' if log else ""
    note = (
        f"{plural(left_out, 'line')} at the upper edge: not finite there, or far above the others."
        if left_out
        else ""
    )
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}</h3>{scale}'
        f"{_legend(legend, best)}</figcaption>"
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{name}-t'
        f' {name}-d">'
        f'<title id="{name}-t">{escape(title)} of {plural(len(lines), "point")} over'
        " global_step</title>"
        f'<desc id="{name}-d">{escape(_summary(lines, best, drawing))}</desc>{"".join(body)}</svg>'
        f"{f'<p class=note>{escape(note)}</p>' if note else ''}</figure>"
    )


def _range(lines: list[Line], values: list[float], *, percent: bool) -> tuple[float, float, int]:
    """Lowest and highest value to draw, and how many lines leave that: one that diverged shall not
    flatten the others.
    """
    low, high = min(values), max(values)
    if percent:
        return low, high, 0
    firsts = [v for line in lines if (v := finite(line.points[0][1])) is not None]
    top = min(high, ROOM * max(firsts, default=high))
    if top <= low:
        top = high
    return low, top, sum(any(_above(v, top) for _, v in line.points) for line in lines)


def _above(value: float, top: float) -> bool:
    return value > top or finite(value) is None


def _line(line: Line, role: str, plot: Plot) -> str:
    x, y, drawing = plot.x, plot.y, plot.chart
    points = chart.thin(line.points, plot.most)
    inside = [(step, plot.top if _above(v, plot.top) else v) for step, v in points]
    last = next((p for p in reversed(line.points) if finite(p[1]) is not None), line.points[-1])
    said = f"<title>{escape(line.name)}: {drawing.text(last[1])} at step {last[0]:,.0f}</title>"
    dot = (
        f'<circle cx="{x.at(inside[0][0]):.1f}" cy="{y.at(inside[0][1]):.1f}" r="2"/>'
        if len(inside) == 1
        else ""
    )
    style = line.style if role == "one" else ""
    return (
        f'<g class="{role} {style}">{said}<path class="line"'
        f' d="{chart.path(inside, x, y)}"/>{dot}</g>'
    )


def _end(best: Line, plot: Plot) -> str:
    value = best.points[-1][1]
    at = plot.y.at(min(value, plot.top)) if finite(value) is not None else plot.y.end
    return (
        f'<text class="end best" x="{plot.x.end + 9:.1f}"'
        f' y="{at:.1f}">{escape(plot.chart.text(value))}</text>'
    )


def _legend(legend: list[tuple[str, str]], best: Line | None) -> str:
    swatch = (
        '<svg class="swatch" viewBox="0 0 22 10" aria-hidden="true"><path class="line"'
        ' d="M1,5H21"/></svg>'
    )
    items = [f'<li class="best">{swatch}best: {escape(best.name)}</li>'] if best else []
    items += [f'<li class="{style}">{swatch}{escape(words)}</li>' for style, words in legend]
    return f'<ul class="legend">{"".join(items)}</ul>'


def _summary(lines: list[Line], best: Line | None, drawing: Chart) -> str:
    """The picture in words, for those who do not see it."""
    lasts = [p[1] for line in lines if finite((p := line.points[-1])[1]) is not None]
    said = f"{plural(len(lines), 'line')}"
    if lasts:
        said += (
            f", whose last values go from {drawing.text(min(lasts))} to {drawing.text(max(lasts))}"
        )
    if best and best.points:
        said += f". The best one, {best.name}, ends at {drawing.text(best.points[-1][1])}"
    return f"{said}."
