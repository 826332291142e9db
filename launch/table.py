"""Tables of thousands of rows at once; rich, which lays out some hundred rows a second, is kept for what else is printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
from rich.cells import cell_len

Cell = str | tuple[str, str | None]  # a text, or a text and its colour


def width_of(text: str) -> int:
    """In columns of a terminal."""
    return len(text) if text.isascii() else cell_len(text)


def lines(header: Sequence[str], rows: Iterable[Sequence[Cell]], left: Sequence[str] = ()) -> list[str]:
    """The table's lines; each column as wide as its widest cell. left: the columns that begin at their left edge."""
    cells = [[(c, None) if isinstance(c, str) else c for c in row] for row in (header, *rows)]
    widths = [max(map(width_of, column)) for column in zip(*([text for text, _ in row] for row in cells), strict=True)]
    flush_left = [name in left for name in header]
    found = []
    for row in cells:
        parts = []
        for (text, colour), width, to_left in zip(row, widths, flush_left, strict=True):
            shown, gap = click.style(text, fg=colour) if colour else text, " " * (width - width_of(text))
            parts.append(shown + gap if to_left else gap + shown)
        found.append("  ".join(parts).rstrip())
    return found


def show(header: Sequence[str], rows: Iterable[Sequence[Cell]], left: Sequence[str] = ()) -> None:
    """Prints the table, in colour on a terminal."""
    first, *others = lines(header, rows, left)
    click.echo(click.style(first, bold=True))
    click.echo("\n".join(others) + "\n" if others else "", nl=False)
