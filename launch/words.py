"""How numbers, times and verdicts read on the page; pure functions of values.

Imports only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

NONE = "—"  # what stands where a file has no value

# verdict -> (after the status, in a sentence). An unknown verdict of a newer version is shown as it
# is written.
VERDICTS: dict[str, tuple[str, str]] = {
    "completed": ("", "It ran to its last step."),
    "preempted": (
        "preempted",
        (
            "The cluster or the machine asked it to stop. The next start continues from its"
            " checkpoint."
        ),
    ),
    "timeout": (
        "time limit",
        "It stopped before its time limit. The next start continues from its checkpoint.",
    ),
    "pruned": (
        "pruned",
        "Its search stopped it for better trials. Submitting it by its own name takes it up again.",
    ),
    "oom_gpu": ("out of GPU memory", "The GPU's memory did not suffice."),
    "oom_host": ("out of host memory", "The machine's memory did not suffice."),
    "nan": ("not finite", "The loss or a gradient was no longer a finite number."),
    "data": ("data", "A file of the data set is missing or spoilt."),
    "hang": ("hang", "The ranks stopped making progress."),
    "user_error": ("error in the trainer", "The trainer raised an exception."),
    "infrastructure": ("infrastructure", "The machine failed, not the job."),
    "killed": ("killed", "A process was killed and left no word."),
    "cancelled": ("cancelled", "A person cancelled it."),
}

# A failure by the same verdict: launch.runs.restarts ends what makes no step.
FAILED_BY_TIMEOUT = (
    "Its attempts reached their time limit, or were stopped, before a first new step."
)


def finite(value: Any) -> float | None:
    """The number in a file's value, or None: not a number, NaN, an infinity, or too large to draw a
    span of.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        return None
    return float(value)


def as_float(value: int | float) -> float:
    """The value; an integer that is too large for a float is an infinity."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def number(value: float, digits: int = 3) -> str:
    """A short decimal: 12,345 0.0213 1.2e-05 with `digits` significant digits, whole numbers in
    full.
    """
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    if value and not 1e-4 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return (
            f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
        )
    if abs(value) >= 10 ** (digits - 1) or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float, places: int = 2) -> str:
    """0.9833 -> 98.33%."""
    return f"{value:.{places}%}"


def seconds(value: float) -> str:
    """A duration as a person says it: 1 d 2 h, 1 h 02 min, 3 min 20 s, 12.3 s, 4.1 ms."""
    if value < 1:
        return f"{value * 1000:.3g} ms"
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def memory(mb: float) -> str:
    """812 MB, 12.4 GB, in the powers of two that timing.jsonl counts in."""
    return f"{mb:,.0f} MB" if mb < 10_000 else f"{mb / 1024:,.1f} GB"


def moment(unix: Any) -> str:
    """Unix seconds as UTC, to the second."""
    found = finite(unix)
    try:
        return (
            NONE
            if found is None
            else datetime.fromtimestamp(found, UTC).strftime("%Y-%m-%d %H:%M:%S")
        )
    except (OverflowError, OSError, ValueError):  # not a year that a calendar has
        return NONE


def shown(value: Any, as_text: Callable[[float], str] = number) -> str:
    """`as_text` of a number, or the dash where there is none."""
    found = finite(value)
    return NONE if found is None else as_text(found)


def plural(count: int, noun: str) -> str:
    """1 step, 2 steps."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
