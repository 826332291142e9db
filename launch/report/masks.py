"""Test pictures with their masks on the page: picture, truth, prediction, and what each colour
means.

Imports only the standard library.
"""

from __future__ import annotations

from typing import Any

from launch.report.html import section, text
from launch.report.images import place, png
from launch.report.run_data import Facts, Row, as_row
from launch.words import finite, percent, plural

MOST_SCENES = 6
KINDS = (("picture", "Picture"), ("truth", "Truth"), ("predicted", "Prediction"))


def scenes(run: Facts) -> str:
    """The pictures of `figures/masks.json`; empty where the run left none."""
    if "masks.json" not in run.figures:
        return ""
    content = as_row(run.figures["masks.json"])
    listed = content.get("scenes")
    if not isinstance(listed, list):
        return section("Masks", '<p class="note">figures/masks.json lists no scenes: left out.</p>')
    drawn = [_scene(as_row(scene)) for scene in listed[:MOST_SCENES]]
    parts = [place(content), _colours(content.get("classes"))]
    if bad := drawn.count(""):
        parts.append(
            f'<p class="note">{plural(bad, "scene")} of figures/masks.json cannot be shown: left'
            " out.</p>"
        )
    return section(
        "Masks", *parts, f'<div class="scenes">{"".join(drawn)}</div>' if any(drawn) else ""
    )


def _scene(row: Row) -> str:
    made = [png(row.get(key)) for key, _ in KINDS]
    if None in made:
        return ""
    sample, share = finite(row.get("sample")), finite(row.get("accuracy"))
    number = f"#{sample:.0f}" if sample is not None and 0 <= sample < 1e12 else ""
    right = (
        f"{percent(share, 1)} of its pixels right" if share is not None and 0 <= share <= 1 else ""
    )
    said = " · ".join(word for word in (number, right) if word)
    beside = f"<span>{text(said)}</span>" if said else ""
    figures = "".join(
        f"<figure>{picture.img(f'{name} {number}'.strip(), side=None)}<figcaption><b>{name}</b>"
        f"{beside if key == 'predicted' else ''}</figcaption></figure>"
        for (key, name), picture in zip(KINDS, made, strict=True)
        if picture
    )
    return f'<div class="pictures scene">{figures}</div>'


def _colours(classes: Any) -> str:
    """A legend of the classes; empty where the file has none that can be read."""
    items = []
    for row in map(as_row, classes if isinstance(classes, list) else []):
        name, colour = row.get("name"), row.get("colour")
        if not isinstance(name, str) or not isinstance(colour, list) or len(colour) != 3:
            continue
        if all(type(c) is int and 0 <= c <= 255 for c in colour):
            items.append(
                '<li><span class="swatch"'
                f' style="background:rgb({",".join(map(str, colour))})"></span>{text(name)}</li>'
            )
    return f'<ul class="legend colours">{"".join(items)}</ul>' if items else ""
