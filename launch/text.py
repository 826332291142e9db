"""What a terminal is given: text of files, images' folders and other programs is shown, never run.

Every line that the verbs print goes through here.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click

# Control characters, those that turn the direction of writing, other ends of lines, and bytes that
# are no UTF-8.
_CONTROLS = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)


def plain(text: object, keep: str = "") -> str:
    """The text with an escape in each control character's place: `\\x1b` for what begins a
    terminal's commands.

    keep: those that stay, where the text is laid out by us: newlines and tabs.
    """
    return _CONTROLS.sub(
        lambda found: found[0] if found[0] in keep else _escape(found[0]), str(text)
    )


def _escape(character: str) -> str:
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    if short:
        return short
    code = ord(character)
    if code < 0x20:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def echo(
    text: object = "",
    *,
    err: bool = False,
    nl: bool = True,
    colour: str | None = None,
    bold: bool = False,
) -> None:
    """Prints text that we laid out in lines, whatever its parts came from."""
    shown = plain(text, keep="\n\t")
    if (colour or bold) and shown:
        shown = click.style(shown, fg=colour, bold=bold or None)
    click.echo(shown, err=err, nl=nl)


def echo_styled(lines: str, *, nl: bool = True) -> None:
    """Prints lines whose parts went through `plain` before they were given colours."""
    click.echo(lines, nl=nl)


def echo_log(line: bytes) -> None:
    """Prints a line of a log: on a terminal its escapes are shown; a pipe or a file has the bytes
    as they are.
    """
    if sys.stdout.isatty():
        echo(line.decode(errors="replace"))
    else:
        click.echo(line)


def shown(value: Any) -> str:
    """A path as the person would type it from here."""
    try:
        return str(Path(value).relative_to(Path.cwd()))
    except ValueError:
        return str(value)
