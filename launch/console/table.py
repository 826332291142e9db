"""Tables of thousands of rows at once; rich, which lays out some hundred rows a second, is kept for
what else is printed.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

import click
from rich.cells import cell_len

from launch.text import echo_styled, plain

Cell = str | tuple[str, str | None]  # a text, or a text and its colour
NARROWEST = 16  # a column is folded to no less


def width_of(text: str) -> int:
    """In columns of a terminal."""
    return len(text) if text.isascii() else cell_len(text)


def lines(
    header: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    left: Sequence[str] = (),
    fold: Sequence[str] = (),
    width: int | None = None,
) -> list[str]:
    """The table's rows; each column as wide as its widest cell. left: the columns that begin at
    their left edge.

    fold: the columns whose texts go on below where the table would be wider than `width`; such a
    row has several lines.
    """
    cells = [
        [(plain(c), None) if isinstance(c, str) else (plain(c[0]), c[1]) for c in row]
        for row in (header, *rows)
    ]
    widths = [
        max(map(width_of, column))
        for column in zip(*([text for text, _ in row] for row in cells), strict=True)
    ]
    flush_left = [name in left for name in header]
    foldable = [i for i, name in enumerate(header) if name in fold]
    if width is None or not foldable or sum(widths) + 2 * (len(widths) - 1) <= width:
        return [_line(row, widths, flush_left) for row in cells]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(foldable, key=widths.__getitem__)
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return [
        "\n".join(_line(part, widths, flush_left) for part in _folded(row, widths)) for row in cells
    ]


def _line(
    row: Sequence[tuple[str, str | None]], widths: Sequence[int], flush_left: Sequence[bool]
) -> str:
    parts = []
    for (text, colour), width, to_left in zip(row, widths, flush_left, strict=True):
        shown, gap = (
            click.style(text, fg=colour) if colour and text else text,
            " " * (width - width_of(text)),
        )
        parts.append(shown + gap if to_left else gap + shown)
    return "  ".join(parts).rstrip()


def _folded(
    row: Sequence[tuple[str, str | None]], widths: Sequence[int]
) -> Iterator[list[tuple[str, str | None]]]:
    """The row as several ones, no text of them wider than its column."""
    texts = []
    for (text, _), width in zip(row, widths, strict=True):
        indent = len(text) - len(text.lstrip()) + 2
        texts.append(
            [text]
            if width_of(text) <= width
            else textwrap.wrap(text, width, subsequent_indent=" " * indent)
        )
    for parts in zip_longest(*texts, fillvalue=""):
        yield [(part, colour) for part, (_, colour) in zip(parts, row, strict=True)]


def show(header: Sequence[str], rows: Iterable[Sequence[Cell]], left: Sequence[str] = ()) -> None:
    """Prints the table, in colour on a terminal."""
    first, *others = lines(header, rows, left)
    echo_styled(click.style(first, bold=True))
    echo_styled("\n".join(others) + "\n" if others else "", nl=False)
