"""Numbers that a weight file may hold."""

from collections.abc import Mapping

import numpy as np

from crossdim_jax.errors import WeightsError, first_of


def check_numbers(arrays: Mapping[str, np.ndarray], name: str) -> None:
    """Raises WeightsError, naming tensors, unless all are finite numbers and variances not below 0.

    Args:
      arrays: path -> array, as in `Weights`.
      name: the file, for the message.
    """
    problems = {path: numbers_problem(path, array) for path, array in arrays.items()}
    found = [f"{path} {problem}" for path, problem in problems.items() if problem]
    if found:
        raise WeightsError(
            f"{name}: {len(found)} tensors cannot be weights:\n  {first_of(found)}\n"
            "Make the file again from weights that are sound."
        )


def numbers_problem(path: str, array: np.ndarray) -> str | None:
    """Reason why an array cannot be weights, or None; `path` tells a variance from the others."""
    if array.dtype.kind != "f":
        return f"is of type {array.dtype}; expected floating-point numbers"
    with np.errstate(over="ignore"):
        finite = np.isfinite(array.astype(np.float32, copy=False)).all()
    if not finite:
        return "holds NaN or infinite values"
    if path.endswith("/var") and (array < 0).any():
        return "holds negative variances"
    return None
