"""Results as plain JSON values and as CSV."""

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.storage.reading import naming, read_bytes
from crossdim_jax.text import shown, unshown

# What spreadsheets take for a formula: at the beginning of a cell, and behind a semicolon, which
# some of them split at. https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"""((?:^|;)[ "']*)([=+@\-\uff1d\uff0b\uff20\uff0d])""")
_ESCAPED = re.compile(r"""((?:^|;)[ "']*)'([=+@\-\uff1d\uff0b\uff20\uff0d])""")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")
_LIMIT = 256 << 20  # bytes of a table that is read


def json_safe(value: Any) -> Any:
    """Plain JSON values: NumPy numbers become Python's, NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Numbers with nine digits; empty where there is none; text that is no formula.

    Text that a spreadsheet would take for a formula gets an apostrophe in front, and what is not
    visible is escaped as in `text.shown`; `csv_rows` undoes both.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(cell) for cell in row] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    value = json_safe(value)
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.9g}"
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _FORMULA.sub(r"\1'\2", shown(value))


def csv_rows(path: str | os.PathLike, *, first: str) -> list[list[str]]:
    """The rows of a table that `csv_text` made, also as a spreadsheet saves it anew.

    Commas, semicolons or tabs between the cells, a mark at the beginning, UTF-16 or Windows' own
    characters, other line ends. Rows without text are left out.

    Args:
      path: of the file.
      first: a column of the heading row, which tells what stands between the cells.

    Returns:
      rows of text as `csv_text` was given it, the heading row first.

    Raises DataError, naming the file, if it cannot be read or has no such column.
    """
    with naming(path, "a table of comma-separated values"):
        text = _decoded(read_bytes(path, limit=_LIMIT))
        text = text.replace("\r\n", "\n").replace("\r", "\n")
        if text.startswith("sep="):  # a line for spreadsheets only
            text = text.partition("\n")[2]
        for delimiter in ",;\t|":
            [heading] = csv.reader(text.split("\n", 1)[:1], delimiter=delimiter)
            if first in heading:
                lines = io.StringIO(text, newline="")
                rows = csv.reader(lines, delimiter=delimiter, strict=True)
                return [[_uncell(cell) for cell in row] for row in rows if any(map(str.strip, row))]
    raise DataError(f"{path}: found no column {first!r} in its first line")


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252")


def _uncell(text: str) -> str:
    return unshown(_ESCAPED.sub(r"\1\2", text))
