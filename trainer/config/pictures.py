"""What a model is given, as far as the settings alone tell. Standard library only."""

from __future__ import annotations

from typing import NamedTuple


class Pictures(NamedTuple):
    """What the model is given: channels, height and width in pixels, classes (None: known once the
    data is prepared).
    """

    channels: int
    height: int
    width: int
    classes: int | None
