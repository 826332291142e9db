"""Values as HTML: escaped text, tables, sections; knows nothing of runs.

Imports only the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from launch.words import NONE


class Html(str):
    """Text that is HTML already.

    Every other string is escaped where it enters the page (`text`).
    """


def text(value: Any) -> Html:
    """A value of a file as HTML: escaped, unless it is HTML; None is a dash."""
    if isinstance(value, Html):
        return value
    if value is None:
        return Html(NONE)
    return Html(escape(value if isinstance(value, str) else str(value)))


def table(
    heads: list[tuple[str, str]], rows: Iterable[list[Any]], name: str, best: int | None = None
) -> Html:
    """A table that scrolls sideways where it is too wide.

    `heads`: (heading, CSS class of its column); best: the row to mark.

    A row of one cell is the heading of those below it.
    """
    head = "".join(f'<th scope="col" class="{style}">{text(word)}</th>' for word, style in heads)
    body = []
    for i, (first, *rest) in enumerate(rows):
        if not rest:
            body.append(
                '<tr class="group"><th scope="rowgroup"'
                f' colspan="{len(heads)}">{text(first)}</th></tr>'
            )
            continue
        cells = "".join(
            f'<td class="{s}">{text(v)}</td>' for v, (_, s) in zip(rest, heads[1:], strict=True)
        )
        body.append(
            f'<tr{" class=best" if i == best else ""}><th scope="row"'
            f' class="{heads[0][1]}">{text(first)}</th>{cells}</tr>'
        )
    return Html(
        f'<div class="scroll" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def fact_table(rows: Iterable[tuple[str, Any]]) -> Html:
    """Two columns: a name and its value."""
    # Where there is little room, a long name breaks after its dots and underscores.
    named = ((text(k).replace(".", ".<wbr>").replace("_", "_<wbr>"), v) for k, v in rows)
    body = "".join(f'<tr><th scope="row">{k}</th><td>{text(v)}</td></tr>' for k, v in named)
    return Html(f'<table class="facts"><tbody>{body}</tbody></table>')


def flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested maps as (dotted name, value); what is no map, as JSON, but words without
    their quotes.
    """
    if isinstance(value, dict) and value:
        return [row for k, v in value.items() for row in flat(v, f"{name}.{k}" if name else str(k))]
    return [(name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))]


def section(title: str, *parts: str) -> Html:
    return Html(f"<section><h2>{text(title)}</h2>{''.join(parts)}</section>")
