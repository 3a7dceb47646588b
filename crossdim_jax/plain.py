"""Results as plain JSON values and as CSV."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


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
    """Numbers with nine digits; empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells = (json_safe(cell) for cell in row)
        writer.writerow(
            ["" if c is None else f"{c:.9g}" if isinstance(c, float) else c for c in cells]
        )
    return text.getvalue()
