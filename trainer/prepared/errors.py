"""What is wrong with data, for users."""

from __future__ import annotations


class DataError(Exception):
    """The data is not there, or is not what it should be; the message says what, where to put it,
    and what to try.
    """
