"""The gate for records: JSON that a run wrote and reads back, checked in form before it is used.

A record may have been cut off, edited by hand, or replaced by something else. Whoever reads one
says which fields it must have, and of what form; the error names file, field, form and remedy.
"""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from crossdim_jax.errors import DataError
from crossdim_jax.storage.reading import read_bytes

LIMIT = 256 << 20  # bytes; a summary of a hundred thousand cases has 30 million


@dataclasses.dataclass(frozen=True)
class Form:
    """Form of a field. words: for the message. holds: whether a value is of this form."""

    words: str
    holds: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    """True if a JSON value is a finite number; true and false are none.

    Nor is an integer that no float can hold: whoever calculates with it would fail.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN


def is_count(value: Any) -> bool:
    """True if a JSON value is a whole number from 0 that 64 bits can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


TEXT = Form("text", lambda v: isinstance(v, str))
NUMBER = Form("a number", is_number)
COUNT = Form("a whole number from 0 to 2^63 - 1", is_count)
FIELDS = Form("an object", lambda v: isinstance(v, dict))
TEXTS = Form("a list of texts", _is_texts)
NAMES = Form("a list of texts, each once", lambda v: _is_texts(v) and len(set(v)) == len(v))
NOTES = Form(
    "a list of [case id, message]",
    lambda v: isinstance(v, list) and all(_is_texts(pair) and len(pair) == 2 for pair in v),
)


def objects_of(form: Form) -> Form:
    """The form of an object whose values are all of one form."""
    return Form(
        f"an object in which each value is {form.words}",
        lambda v: isinstance(v, dict) and all(form.holds(item) for item in v.values()),
    )


def read_record(
    path: str | os.PathLike,
    expected: Mapping[str, Form] | None = None,
    *,
    optional: Mapping[str, Form] | None = None,
    remedy: str,
    constants: bool = False,
    limit: int = LIMIT,
) -> dict[str, Any]:
    """Reads a record: a JSON object in a regular file.

    Args:
      path: of the file.
      expected: fields that it must have, and their forms; it may have others.
      optional: forms of fields that it may lack, such as those of later versions.
      remedy: what to do about a damaged one; ends the message.
      constants: whether NaN and Infinity, which JSON does not know, are taken.
      limit: the most bytes that it may have.

    Raises DataError, naming the file, if it is missing, no regular file, too large, not JSON, or
    lacks a field or has one of another form.
    """
    record = parse(read_bytes(path, limit=limit), path, remedy=remedy, constants=constants)
    check(record, path, expected, optional=optional, remedy=remedy)
    return record


def check(
    record: Mapping[str, Any],
    path: str | os.PathLike,
    expected: Mapping[str, Form] | None = None,
    *,
    optional: Mapping[str, Form] | None = None,
    remedy: str,
) -> None:
    """Raises DataError, naming file and field, unless a record has the fields of `read_record`."""
    optional = {name: form for name, form in (optional or {}).items() if name in record}
    for name, form in {**(expected or {}), **optional}.items():
        if name not in record:
            raise DataError(f"{path}: has no field {name!r}, expected {form.words}; {remedy}")
        if not form.holds(record[name]):
            raise DataError(
                f"{path}: its field {name!r} is {_short(record[name])}, expected {form.words}; "
                f"{remedy}"
            )


def parse(
    content: bytes, path: str | os.PathLike, *, remedy: str, constants: bool = False
) -> dict[str, Any]:
    """The JSON object that `content` is. Raises DataError as `read_record`."""
    options = {} if constants else {"parse_constant": _refuse, "parse_float": _finite}
    try:
        record = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once, **options)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise DataError(f"{path}: not readable JSON ({why}); {remedy}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: is {_short(record)}, expected a JSON object; {remedy}")
    return record


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:80]!r} is there more than once")
    return record


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
