"""Pictures with lines of text below them, and grids of such pictures, for a person to look at.

Without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

LEAST_SIDE, MOST_SIDE = 160, 640  # pixels: smaller pictures are made larger, pixel by pixel
TEXT, LINE, GAP = 13, 18, 6  # pixels: the letters, a line of them, what is around


class Line(NamedTuple):
    """A line of text. colour: of a little square before it."""

    text: str
    colour: tuple[int, int, int] | None = None


def captioned(image: Image.Image, lines: Sequence[Line]) -> Image.Image:
    """The picture, RGB, at a size that can be looked at, on white, and its lines below; as wide as
    its widest line.
    """
    image, font = at_a_size_to_look_at(image.convert("RGB")), ImageFont.load_default(TEXT)
    indents = [0 if line.colour is None else LINE for line in lines]
    texts = [
        round(font.getlength(line.text)) + indent
        for line, indent in zip(lines, indents, strict=True)
    ]
    page = Image.new(
        "RGB",
        (max([image.width, *texts]) + 2 * GAP, image.height + LINE * len(lines) + 2 * GAP),
        "white",
    )
    page.paste(image, (GAP, GAP))
    draw = ImageDraw.Draw(page)
    for number, (line, indent) in enumerate(zip(lines, indents, strict=True)):
        top = GAP + image.height + LINE * number
        if line.colour is not None:
            draw.rectangle(
                (GAP, top + 4, GAP + TEXT - 2, top + TEXT + 2), fill=line.colour, outline="grey"
            )
        draw.text((GAP + indent, top + 2), line.text, fill="black", font=font)
    return page


def at_a_size_to_look_at(image: Image.Image) -> Image.Image:
    """Small pictures a whole number of times as large, without mixing their pixels; large ones
    smaller.
    """
    if max(image.size) > MOST_SIDE:
        image.thumbnail((MOST_SIDE, MOST_SIDE))
        return image
    times = -(-LEAST_SIDE // max(image.size))
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


def grid(pages: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of any size side by side, row by row, each in a cell as large as the largest."""
    width, height = (max(page.size[side] for page in pages) for side in (0, 1))
    sheet = Image.new(
        "RGB", (width * min(columns, len(pages)), height * -(-len(pages) // columns)), "white"
    )
    for number, page in enumerate(pages):
        sheet.paste(page, (width * (number % columns), height * (number // columns)))
    return sheet
