"""Text tables of numbers, as instruments, spreadsheets and other programs write them: what is clear
is read, the rest is refused.

Read are fields parted by spaces, tabs, commas or semicolons; a header; quoted fields; decimal
commas; comments behind `#`; a byte order mark; the line ends of any system. Nothing is guessed: a
value that is no finite number is refused by its line and column.
"""

from __future__ import annotations

import csv
import math
import re
from typing import NamedTuple

import numpy as np

from trainer.prepared.errors import DataError

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WITH_COMMA = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
# 1,234: a thousand and more, or one and a little
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}", re.ASCII)
NOT_FINITE = ("nan", "inf", "infinity")
DELIMITERS = (";", "\t", ",", None)  # None: any white space
TRIED = 100  # lines by which the delimiter is chosen
MAX_SHOWN = 5  # mistakes in a message
SHOWN_CHARACTERS = 30  # of a field
BEGINNINGS = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook: unpack it, or save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an Excel workbook: save the sheet as CSV",
    b"\x1f\x8b": "compressed by gzip: unpack it",
    b"\xff\xfe": "text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "text in UTF-16: save it as UTF-8",
    b"<": "a web page or XML: was the download answered by an error page?",
    b"version https://git-lfs": "a Git LFS pointer: `git lfs pull` brings the file",
}


class Line(NamedTuple):
    """A line that is neither empty nor a comment. number: in the file; the first is 1."""

    number: int
    text: str


class Field(NamedTuple):
    """One value as it is written. line and column: the first is 1."""

    line: int
    column: int
    text: str

    def __str__(self) -> str:
        text = self.text
        if len(text) > SHOWN_CHARACTERS:
            text = f"{text[:SHOWN_CHARACTERS]}..."
        return f"line {self.line}, column {self.column}: {text!a}"


class Table(NamedTuple):
    """values: float64 [rows, columns], all finite. names: of the columns, where the table has a
    header; else none.
    """

    values: np.ndarray
    names: list[str]


def read(content: bytes, columns: int) -> Table:
    """The table in a file's bytes, which must have so many columns.

    Raises DataError, which names the lines and columns of what is wrong, and not the file.
    """
    lines = _lines(_text(content))
    if not lines:
        raise DataError("is empty: it has no row of numbers")
    delimiter = _delimiter(lines[:TRIED], columns)
    rows = [_split(line, delimiter, columns) for line in lines]

    names: list[str] = []
    if not any(_is_number(field.text) for field in rows[0]):
        names = [field.text for field in rows[0]]
        rows = rows[1:]
    if not rows:
        raise DataError(f"is no table of numbers: it has one line, {_shown(lines[0].text)}")
    _check_lengths(rows, columns)

    fields = [field for row in rows for field in row]
    if _has_decimal_commas(fields):
        fields = [field._replace(text=field.text.replace(",", ".")) for field in fields]
    values = [_value(field.text) for field in fields]
    if wrong := [
        field for field, value in zip(fields, values, strict=True) if not math.isfinite(value)
    ]:
        raise DataError(
            f"has {len(wrong)} field(s) that are no finite number: {_first(wrong)}; remove or"
            " complete these lines"
        )
    table = np.array(values, np.float64).reshape(len(rows), columns)
    return Table(table, names if len(names) == columns else [])


def standardised(table: Table) -> tuple[np.ndarray, list[str]]:
    """(float32 [rows, columns], notes): every column less its mean, over its deviation.

    A column that never changes has no deviation: it is zero, and a note names it. Raises DataError
    where a column's numbers are too large to be squared.
    """
    values = table.values
    # The least and the largest: the deviation of a hundred times 0.1 is not zero, for their mean is
    # not 0.1.
    constant = values.min(0) == values.max(0)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = values.mean(0), values.std(0)
        deviation[constant] = 1.0
        result = (values - mean) / deviation
    result[:, constant] = 0.0
    if too_large := [
        _column(table, column) for column in np.flatnonzero(~np.isfinite(deviation + result.sum(0)))
    ]:
        raise DataError(
            f"has numbers that are too large to be standardised in {', '.join(too_large)}"
        )
    notes = [
        f"{_column(table, column)} never changes (it is {values[0, column]:g} in every row): it is"
        " left at zero"
        for column in np.flatnonzero(constant)
    ]
    return result.astype(np.float32), notes


def _text(content: bytes) -> str:
    """The bytes as text. Raises DataError where they are of another kind of file."""
    for beginning, what in BEGINNINGS.items():
        if content.lstrip()[: len(beginning)] == beginning:
            raise DataError(f"is no table of numbers but {what}")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        # of an older system: a header may have its letters, numbers are the same in both
        text = content.decode("latin-1")
    if "\0" in text:
        raise DataError(f"is no text: byte {content.index(0)} is zero")
    return text


def _lines(text: str) -> list[Line]:
    """What is in the lines, which end as on Unix, Windows or an old Mac; comments and empty lines
    are left out.
    """
    lines = re.split(r"\r\n|\n|\r", text)
    without_comments = (
        Line(number, line.partition("#")[0].strip(" \r\n")) for number, line in enumerate(lines, 1)
    )
    return [line for line in without_comments if line.text.strip()]


def _delimiter(lines: list[Line], columns: int) -> str | None:
    """What parts the fields: that by which most lines are so many numbers, else so many fields.

    Raises DataError.
    """
    best, best_fit = None, (0, 0)
    for delimiter in DELIMITERS:
        rows = [
            row
            for row in (_split(line, delimiter, columns) for line in lines)
            if len(row) == columns
        ]
        fit = sum(all(_is_number(field.text) for field in row) for row in rows), len(rows)
        if fit > best_fit:
            best, best_fit = delimiter, fit
    if best_fit == (0, 0):
        raise DataError(
            f"is no table of numbers with {columns} columns, parted by spaces, tabs, commas or"
            f" semicolons: line {lines[0].number} is {_shown(lines[0].text)}"
        )
    return best


def _split(line: Line, delimiter: str | None, columns: int) -> list[Field]:
    """The fields of a line, without their quotes. Raises DataError."""
    if delimiter is None:
        texts = [text.strip('"') for text in line.text.split()]
    else:
        try:
            texts = next(csv.reader([line.text], delimiter=delimiter, skipinitialspace=True))
        except csv.Error as error:
            raise DataError(f"is no table of numbers: line {line.number}: {error}") from None
    if len(texts) == columns + 1 and not texts[-1].strip():
        texts.pop()  # some programs write a delimiter behind the last field, too
    return [Field(line.number, column, text.strip()) for column, text in enumerate(texts, 1)]


def _is_number(text: str) -> bool:
    """Whether this is written as a number, by a point or a comma; one that is not finite is one,
    too: it heads no column.
    """
    named = text.lstrip("+-").lower() in NOT_FINITE
    return named or bool(NUMBER.fullmatch(text) or WITH_COMMA.fullmatch(text))


def _value(text: str) -> float:
    """The number, NaN where it is none."""
    return float(text) if NUMBER.fullmatch(text) else math.nan


def _check_lengths(rows: list[list[Field]], columns: int) -> None:
    """Raises DataError where lines have another number of fields."""
    wrong = [f"line {row[0].line} has {len(row)}" for row in rows if len(row) != columns]
    if wrong:
        more = f" and {len(wrong) - MAX_SHOWN} more" if len(wrong) > MAX_SHOWN else ""
        raise DataError(
            f"has lines of another length than {columns} columns:"
            f" {', '.join(wrong[:MAX_SHOWN])}{more}"
        )


def _has_decimal_commas(fields: list[Field]) -> bool:
    """Whether numbers are written as 0,5. Raises DataError where that is not clear."""
    commas = [field for field in fields if WITH_COMMA.fullmatch(field.text)]
    if not commas:
        return False
    points = [field for field in fields if "." in field.text and NUMBER.fullmatch(field.text)]
    if points:
        raise DataError(
            f"has decimal commas and decimal points ({commas[0]}; {points[0]}): write all numbers"
            " with points"
        )
    if all(THOUSANDS.fullmatch(field.text) for field in commas):
        raise DataError(
            f"has commas that may be decimal or part thousands ({_first(commas)}): write all"
            " numbers with points, and thousands in one piece"
        )
    return True


def _column(table: Table, column: int) -> str:
    name = f" ({table.names[column]})" if table.names else ""
    return f"column {column + 1}{name}"


def _first(fields: list[Field]) -> str:
    """The first ones, and how many more there are."""
    more = f" and {len(fields) - MAX_SHOWN} more" if len(fields) > MAX_SHOWN else ""
    return "; ".join(str(field) for field in fields[:MAX_SHOWN]) + more


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}...")
