"""Pictures on the page: what the model is given, what it takes test pictures for, and its most
confident mistakes.

Imports only the standard library.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from html import escape
from typing import Any

from launch.report.evaluation import SPLITS
from launch.report.html import Html, section, text
from launch.report.run_data import Facts, Row, as_row
from launch.words import finite, percent, plural

MOST_PICTURES = 16  # of one file
MOST_BYTES, MOST_PIXELS = 1 << 20, 1024  # of one picture: its file, and its longer side
SIDE = 96  # CSS pixels of a picture's side on the page
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Png:
    """A picture that may enter the page. width and height in pixels."""

    data: bytes
    width: int
    height: int

    def img(self, alt: str, side: int | None = SIDE) -> str:
        """side: CSS pixels of the square that it is shown in; None: of its own size."""
        # Few pixels are shown as squares, many are scaled down smoothly.
        style = ' class="pixels"' if max(self.width, self.height) <= SIDE else ""
        uri = base64.b64encode(self.data).decode()
        width, height = side or self.width, side or self.height
        return (
            f'<img{style} src="data:image/png;base64,{uri}" width="{width}" height="{height}"'
            f' alt="{escape(alt)}">'
        )


def png(value: Any) -> Png | None:
    """The picture in a file's base64, None where it is none, or none of a size that a report can
    carry.
    """
    if not isinstance(value, str) or len(value) > MOST_BYTES * 4 // 3:
        return None
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        return None
    if not data.startswith(SIGNATURE) or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (
        Png(data, width, height)
        if min(width, height) > 0 and max(width, height) <= MOST_PIXELS
        else None
    )


def pictures(run: Facts) -> str:
    """All files' pictures; empty where the run left none."""
    files = [
        ("samples.json", "Train pictures, as the model is given them", _sample),
        (
            "predictions.json",
            "Truth and prediction: the first pictures, and some from all over",
            _predicted,
        ),
        ("misclassified.json", "The most confident mistakes", _predicted),
    ]
    parts = []
    for file, title, drawn in files:
        if file not in run.figures:
            continue
        content = as_row(run.figures[file])
        listed = content.get("pictures")
        if not isinstance(listed, list):
            parts.append(f'<p class="note">figures/{file} lists no pictures: left out.</p>')
            continue
        figures = [drawn(as_row(p)) for p in listed[:MOST_PICTURES]]
        if bad := figures.count(""):
            parts.append(
                f'<p class="note">{plural(bad, "picture")} of figures/{file} cannot be shown: left'
                " out.</p>"
            )
        if any(figures):
            shown = f'<div class="pictures">{"".join(figures)}</div>'
            parts.append(f'<div class="gallery"><h3>{title}</h3>{place(content)}{shown}</div>')
    parts += _augmentations(as_row(run.figures.get("augmentations.json")))
    return section("Pictures", *parts) if parts else ""


def _augmentations(content: Row) -> list[str]:
    """A row of draws of each augmentation."""
    rows = content.get("rows")
    shown = []
    for row in map(as_row, rows[:MOST_PICTURES] if isinstance(rows, list) else []):
        name, drawn = row.get("name"), row.get("pngs")
        found = [
            picture
            for one in (drawn[:MOST_PICTURES] if isinstance(drawn, list) else [])
            if (picture := png(one))
        ]
        if isinstance(name, str) and found:
            figures = "".join(
                _figure(picture.img(f"One train picture after {name}"), Html(""))
                for picture in found
            )
            shown.append(
                f'<p class="note under">{text(name)}</p><div class="pictures">{figures}</div>'
            )
    return (
        [f'<div class="gallery"><h3>One train picture, augmented</h3>{"".join(shown)}</div>']
        if shown
        else []
    )


def place(content: Row) -> str:
    """Which split and step a file's pictures are of."""
    step, split = finite(content.get("global_step")), content.get("split")
    said = [SPLITS.get(split, split)] if isinstance(split, str) else []
    said += [f"step {step:,.0f}"] if step is not None else []
    return (
        f'<p class="note under">{text(", ".join(said))}; #: the number of the sample.</p>'
        if said
        else ""
    )


def _sample(row: Row) -> str:
    picture, truth = png(row.get("png")), row.get("truth")
    if picture is None or not isinstance(truth, str):
        return ""
    return _figure(picture.img(f"A train picture of {truth}"), Html(f"<b>{text(truth)}</b>"))


def _predicted(row: Row) -> str:
    """cat, taken for dog (or right), 98.2%, #17: the sample's number finds it again in the data."""
    picture, truth, predicted = png(row.get("png")), row.get("truth"), row.get("predicted")
    if picture is None or not isinstance(truth, str) or not isinstance(predicted, str):
        return ""
    sure = finite(row.get("probability"))
    sample = finite(row.get("sample"))
    said = [percent(sure, 1)] if sure is not None and 0 <= sure <= 1 else []
    said += [f"#{sample:.0f}"] if sample is not None and 0 <= sample < 1e12 else []
    verdict, alt = (
        f"<span>taken for <b>{text(predicted)}</b></span>",
        f"{truth}, taken for {predicted}",
    )
    if predicted == truth:
        verdict, alt = '<span class="state good">✓ right</span>', f"{truth}, right"
    return _figure(
        picture.img(alt), Html(f"<b>{text(truth)}</b>{verdict}<span>{' · '.join(said)}</span>")
    )


def _figure(img: str, caption: Html) -> str:
    return f"<figure>{img}<figcaption>{caption}</figcaption></figure>"
