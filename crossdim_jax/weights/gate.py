"""What a weight file may hold: sound numbers, and a record with fields of the right types."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.storage.records import is_count, is_number


def check_numbers(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Raises WeightsError, naming tensors, unless all are finite numbers and variances not below 0.

    Args:
      arrays: path -> array, as in `Weights`.
      name: the file, for the message.
    """
    problems = {path: numbers_problem(path, array) for path, array in arrays.items()}
    found = [f"{path} {problem}" for path, problem in problems.items() if problem]
    if found:
        more = f"\n  and {len(found) - 5} more" if len(found) > 5 else ""
        raise WeightsError(
            f"{name}: {len(found)} tensors cannot be weights:\n  "
            + "\n  ".join(found[:5])
            + f"{more}\nMake the file again from weights that are sound."
        )


def numbers_problem(path: str, array: np.ndarray) -> str | None:
    """What keeps an array from being weights, in words; `path` tells a variance from the others."""
    if array.dtype.kind != "f":
        return f"is of type {array.dtype}; expected floating-point numbers"
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        return "holds NaN or infinite values"
    if path.endswith("/var") and (array < 0).any():
        return "holds negative variances"
    return None


def check_record(record: Mapping[str, Any], name: str) -> None:
    """Raises WeightsError if a field of a record is not of the type that it is read as."""
    wrong = [
        f"{field}: found {str(record[field])[:80]!r}, expected {says}"
        for field, (holds, says) in _RECORDED.items()
        if record.get(field) is not None and not holds(record[field])
    ]
    if wrong:
        raise WeightsError(
            f"{name}: its record is damaged:\n  "
            + "\n  ".join(wrong)
            + "\nMake the file again with python -m weight_port."
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _counts(value: Any) -> bool:
    return is_count(value) or _are(is_count)(value)


# Field of a record -> whether it can be read, and what it should be.
_RECORDED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("source", "id", "url", "file", "sha256", "licence", "architecture", "padding", "inflate")
        + ("stem", "norm", "statistics", "date"),
        (_is_text, "a text"),
    ),
    **dict.fromkeys(
        ("in_channels", "seed", "tensors", "values", "step"), (is_count, "a whole number")
    ),
    **dict.fromkeys(("inflate_at", "unused", "fresh"), (_are(_is_text), "a list of texts")),
    **dict.fromkeys(("depth_kernels", "depth_taps"), (_counts, "whole numbers")),
    "eps": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "ndim": (lambda value: value in (2, 3), "2 or 3"),
    "factorised": (lambda value: isinstance(value, bool), "true or false"),
    "versions": (lambda value: isinstance(value, dict), "names and versions"),
    "certificate": (lambda value: isinstance(value, dict), "names and values"),
}
