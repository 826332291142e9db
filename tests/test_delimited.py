"""Tables of numbers as text: the same rows however they are written, and every mistake by its line
and column.
"""

from __future__ import annotations

import io

import numpy as np
import pytest

from trainer.prepared import delimited
from trainer.prepared.errors import DataError

COLUMNS = 3
ROWS = [["1.5", "-2e3", ".25"], ["0", "7.", "+1E-2"], ["12", "0.001", "3"]]
VALUES = [[1.5, -2000.0, 0.25], [0.0, 7.0, 0.01], [12.0, 0.001, 3.0]]


def text(delimiter: str = "\t", end: str = "\n") -> str:
    return end.join(delimiter.join(row) for row in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        text(),
        text(" "),
        text("   "),
        text(","),
        text(", "),
        text(";"),
        text(" ; "),
        text("\t\t"),
        text(" \t"),
        text(end="\r\n"),
        text(end="\r"),
        text(end="\n\n  \n"),
        text() + "\n",
        text(end=" \n "),
        text(end="\t\n"),
        text(";", end=";\n") + ";",
        text(",", end=",\n"),
        "# frequency angle chord\n" + text(end=" # taken by hand\n"),
        "frequency\tangle\tchord\n" + text(),
        "angle of attack, chord length, sound level\n" + text(","),
        "an angle\n" + text(" "),
        '"frequency";"angle; in degrees";"chord"\n' + text(";"),
        "\ufeff" + text(),
        "\ufefffrequency,angle,chord\r\n" + text(","),
        text(";").replace(".", ","),
        text(" ").replace(".", ","),
        text("\t").replace(".", ","),
        "\n".join(",".join(f'"{value}"' for value in row) for row in ROWS),
        "\n".join(
            ",".join('"{}"'.format(value.replace(".", ",")) for value in row) for row in ROWS
        ),
        "\n".join(" ".join(f'"{value}"' for value in row) for row in ROWS),
    ],
)
def test_what_is_clear_is_read(content: str) -> None:
    assert delimited.read(content.encode(), COLUMNS).values.tolist() == VALUES


def test_a_header_in_an_old_encoding_names_the_columns() -> None:
    table = delimited.read(("fréquence;angle;corde\n" + text(";")).encode("latin-1"), COLUMNS)
    assert table.names == ["fréquence", "angle", "corde"] and table.values.tolist() == VALUES


def test_a_decimal_comma_is_known_by_one_number_that_can_be_nothing_else() -> None:
    assert delimited.read(b"1,234;5;0,5\n2,345;6;0,25", COLUMNS).values.tolist() == [
        [1.234, 5, 0.5],
        [2.345, 6, 0.25],
    ]
    # by commas, too, these are three fields
    whole = delimited.read(b"1,5 2,5 3\n4,5 5,5 6", COLUMNS)
    assert whole.values.tolist() == [[1.5, 2.5, 3.0], [4.5, 5.5, 6.0]]


def test_the_numbers_are_loadtxts_bit_by_bit() -> None:
    values = np.random.RandomState(0).standard_normal((400, COLUMNS)) * np.array(
        [1e-300, 1.0, 1e300]
    )
    forms = ("{!r}", "{:.6f}", "{:.3e}", "{:g}", "{:.17g}", "{:+.1f}")
    lines = "\n".join(
        "\t".join(forms[i % 6].format(float(v)) for v in row) for i, row in enumerate(values)
    ).encode()
    assert (
        delimited.read(lines, COLUMNS).values.tobytes() == np.loadtxt(io.BytesIO(lines)).tobytes()
    )


MANY = "\n".join("1 2 x" for _ in range(7))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty: it has no row of numbers"),
        (b" \r\n\n# nothing\n", "is empty: it has no row of numbers"),
        (b"a,b,c\n", "is no table of numbers: it has one line, 'a,b,c'"),
        (
            b"1 2 3\n4 nan 6\n7 8 -Inf\n",
            (
                "has 2 field(s) that are no finite number: line 2, column 2: 'nan'; line 3, column"
                " 3: '-Inf'; remove or complete these lines"
            ),
        ),
        (b"nan 2 3\n4 5 6", "line 1, column 1: 'nan'"),
        (b"1 2 1e999", "line 1, column 3: '1e999'"),
        (
            b"a,b,c\n1,2,\n4,?,6",
            "has 2 field(s) that are no finite number: line 2, column 3: ''; line 3, column 2: '?'",
        ),
        (b"1 2 3\n\n1_0 2 0x3\n", "line 3, column 1: '1_0'; line 3, column 3: '0x3'"),
        ("1 2 3\n1 2 \u0663".encode(), "line 2, column 3: '\\u0663'"),
        (
            b"name unit kind\nHz m m\n1 2 3",
            "has 3 field(s) that are no finite number: line 2, column 1: 'Hz'",
        ),
        (MANY.encode(), "line 5, column 3: 'x' and 2 more; remove"),
        (b"1 2 " + b"9x" * 400, "line 1, column 3: '9x9x9x9x9x9x9x9x9x9x9x9x9x9x9x...'"),
        (
            b"1;2;3\n4;5\n6;7;8;9\n",
            "has lines of another length than 3 columns: line 2 has 2, line 3 has 4",
        ),
        (
            b"1|2|3\n",
            (
                "is no table of numbers with 3 columns, parted by spaces, tabs, commas or"
                " semicolons: line 1 is '1|2|3'"
            ),
        ),
        (
            b"1,5;2.5;3",
            (
                "has decimal commas and decimal points (line 1, column 1: '1,5'; line 1, column 2:"
                " '2.5'): write all"
            ),
        ),
        (b"1.234,5;2;3", "line 1, column 1: '1.234,5'"),
        (
            b"1,234;2;3\n5,678;4;5",
            (
                "has commas that may be decimal or part thousands (line 1, column 1: '1,234'; line"
                " 2, column 1"
            ),
        ),
        ("1 2 3".encode("utf-16"), "is no table of numbers but text in UTF-16: save it as UTF-8"),
        (b"1 2 3\0\n", "is no text: byte 5 is zero"),
        (b"PK\x03\x04\x14", "but a ZIP archive or an Excel workbook: unpack it"),
        (b"\x1f\x8b\x08\x00", "but compressed by gzip"),
        (b"\n<!DOCTYPE html>", "but a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "but a Git LFS pointer"),
        (
            b'"' + b"1" * 200_000 + b",2,3",
            "is no table of numbers: line 1: field larger than field limit",
        ),
    ],
)
def test_what_is_not_clear_is_refused_in_one_sentence(content: bytes, told: str) -> None:
    with pytest.raises(DataError) as error:
        delimited.read(content, COLUMNS)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_column_that_never_changes_is_left_at_zero_and_named() -> None:
    # the deviation of a hundred times 0.1 is 1e-17, of 8 it is zero
    rows = "\n".join(f"0.1;{i};8" for i in range(100))
    table, notes = delimited.standardised(
        delimited.read(f"chord;angle;speed\n{rows}".encode(), COLUMNS)
    )
    assert (
        table.dtype == np.float32
        and not table[:, [0, 2]].any()
        and abs(table[:, 1].std() - 1) < 1e-6
    )
    assert notes == [
        "column 1 (chord) never changes (it is 0.1 in every row): it is left at zero",
        "column 3 (speed) never changes (it is 8 in every row): it is left at zero",
    ]


def test_numbers_whose_squares_are_too_large_are_refused() -> None:
    with pytest.raises(
        DataError, match="numbers that are too large to be standardised in column 2"
    ):
        delimited.standardised(delimited.read(b"1 1e300 3\n2 -1e300 4", COLUMNS))
