"""Lines of the metrics file of a run, one JSON object each."""

import json
import os
from typing import Any

from crossdim_jax.storage import records
from crossdim_jax.storage.reading import read_bytes

_LIMIT = 1 << 30  # bytes of the file; a line of a step has some 300


_LINE_LIMIT = 1 << 20


def lines(path: str | os.PathLike) -> list[bytes]:
    """Lines of a metrics file, the last one without a line end; one empty line if it is absent.

    Raises DataError, naming the file, if it is no regular file or too large.
    """
    if not os.path.lexists(path):
        return [b""]
    return read_bytes(path, limit=_LIMIT).split(b"\n")


def record(line: bytes) -> dict[str, Any] | None:
    """The record that a line holds, with None for what is not finite; None if it is no record."""
    if len(line) > _LINE_LIMIT:
        return None
    try:
        found = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    good = isinstance(found, dict) and isinstance(found.get("kind"), str)
    return found if good and records.COUNT.holds(found.get("step")) else None
