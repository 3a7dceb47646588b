"""Running sums and counts of metrics."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


class Totals:
    """Running `(sum, count)` by name, in float64; exact through JSON."""

    def __init__(self, sums: Mapping[str, Any] | None = None):
        self._sums = {
            name: (np.asarray(total, np.float64), np.asarray(count, np.float64))
            for name, (total, count) in (sums or {}).items()
        }

    def add(self, metrics: Mapping[str, tuple[Any, Any]]) -> None:
        """Adds the sums and counts of a step."""
        for name, (total, count) in metrics.items():
            before = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (
                before[0] + np.asarray(total, np.float64),
                before[1] + np.asarray(count, np.float64),
            )

    def mean(self, name: str) -> np.ndarray:
        """`sum / count`; nan where nothing was counted."""
        total, count = self._sums.get(name, (np.zeros(()), np.zeros(())))
        return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)

    @property
    def names(self) -> list[str]:
        """Names that have been added, in the order of its first coming."""
        return list(self._sums)

    def json(self) -> dict[str, Any]:
        """Plain values that the constructor takes back."""
        return {
            name: (total.tolist(), count.tolist()) for name, (total, count) in self._sums.items()
        }


def mean_known(values: np.ndarray) -> float:
    """Mean of those known; nan if none is."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
