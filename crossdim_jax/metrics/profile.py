"""Rows of metrics, and official evaluations as lists of such rows."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from crossdim_jax.metrics import surface


@dataclasses.dataclass(frozen=True, eq=False)
class MaskPair:
    """True and predicted mask of one region.

    Attributes:
      truth, prediction: bool, of equal shape: (z, y, x), or (row, column) of one frame.
      spacing_mm: along the same axes.
    """

    truth: np.ndarray
    prediction: np.ndarray
    spacing_mm: Sequence[float]
    _results: dict[Callable, Any] = dataclasses.field(default_factory=dict, repr=False)

    def once[T](self, function: "Callable[[MaskPair], T]") -> T:
        """`function(self)`, computed once however many metrics need it."""
        if function not in self._results:
            self._results[function] = function(self)
        return self._results[function]

    @property
    def diagonal_mm(self) -> float:
        """Length of the volume's diagonal."""
        return diagonal_mm(self.truth.shape, self.spacing_mm)


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the volume's diagonal: its voxels times their size."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing_mm, strict=True)))


def border_distances_mm(pair: MaskPair) -> tuple[np.ndarray, np.ndarray] | None:
    """`surface.border_distances` in mm, outside = background; None if a mask is empty."""
    if not pair.truth.any() or not pair.prediction.any():
        return None
    return surface.border_distances(pair.truth, pair.prediction, spacing=pair.spacing_mm)


@dataclasses.dataclass(frozen=True)
class Metric:
    """Metric: how it is computed, printed and defined.

    Attributes:
      name: columns are `f"{name}_{region}"`; ends in the unit if that is a length, "mad_mm".
      function: `MaskPair` -> value; NaN for undefined.
      heading: name in tables.
      definition: one line that says what it is, printed below the tables.
      unit: of the printed value; "" for none.
      factor: from the value to what is printed, such as 100 for a ratio in per cent.
      mismatch: value where shape or geometry of the prediction is not the truth's; a function gets
        the diagonal of the truth's volume in mm.
    """

    name: str
    function: Callable[[MaskPair], float]
    heading: str
    definition: str
    unit: str = ""
    factor: float = 1.0
    mismatch: float | Callable[[float], float] = math.nan

    @property
    def title(self) -> str:
        """Heading with the unit: "HD95 (voxels)"."""
        return f"{self.heading} ({self.unit})" if self.unit else self.heading


def percentage(
    name: str, function: Callable[[np.ndarray, np.ndarray], float], heading: str, definition: str
) -> Metric:
    """Row of a ratio `function(truth, prediction)`, printed in per cent; 0 for a mismatch."""
    return Metric(
        name,
        lambda pair: function(pair.truth, pair.prediction),
        heading,
        definition,
        unit="%",
        factor=100.0,
        mismatch=0.0,
    )


# Scored in every challenge, after its official metrics. One row here adds a metric to all.
COMMON: tuple[Metric, ...] = ()


@dataclasses.dataclass(frozen=True)
class Profile:
    """Official evaluation.

    Attributes:
      name: its key in `PROFILES`.
      official: its metrics, in the order of the columns.
      per_frame: True if masks are films (frame, row, column) whose every frame is scored by itself;
        the film has the mean over the frames for which a metric is defined.
    """

    name: str
    official: tuple[Metric, ...]
    per_frame: bool = False

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Official metrics, and those that every challenge has."""
        return self.official + COMMON

    @property
    def definitions(self) -> dict[str, str]:
        """Definition of each metric by name, in the order of the columns."""
        return {metric.name: metric.definition for metric in self.metrics}

    def score(
        self,
        truth: np.ndarray,
        prediction: np.ndarray,
        *,
        regions: Sequence[str],
        spacing_mm: Sequence[float],
        annotated: Sequence[bool] | None = None,
    ) -> dict[str, float]:
        """Row of one case: "dice_WT", "dice_TC", ..., "hd95_WT", ...

        Args:
          truth, prediction: (z, y, x, r) bool, one channel per name of `regions`. Shapes that
            differ score as a mismatch.
          regions: their names.
          spacing_mm: (z, y, x).
          annotated: True for each region that the truth knows; the others are NaN. None: all.
        """
        if truth.shape[-1] != len(regions):
            raise ValueError(f"truth has {truth.shape[-1]} channels for regions {tuple(regions)}")
        if truth.shape != prediction.shape:
            return self.mismatch(
                truth.shape[:-1], regions=regions, spacing_mm=spacing_mm, annotated=annotated
            )

        def column(index: int) -> list[float]:
            pairs = self._pairs(truth[..., index], prediction[..., index], spacing_mm)
            return [_mean([float(m.function(pair)) for pair in pairs]) for m in self.metrics]

        return self._row(column, regions, annotated)

    def mismatch(
        self,
        shape: Sequence[int],
        *,
        regions: Sequence[str],
        spacing_mm: Sequence[float],
        annotated: Sequence[bool] | None = None,
    ) -> dict[str, float]:
        """Row of a case whose prediction is not on the grid of the truth, which has this shape."""
        diagonal, worst = diagonal_mm(shape, spacing_mm), [m.mismatch for m in self.metrics]
        values = [float(value(diagonal) if callable(value) else value) for value in worst]
        return self._row(lambda _: values, regions, annotated)

    def _pairs(
        self, truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
    ) -> list[MaskPair]:
        if not self.per_frame:
            return [MaskPair(truth, prediction, spacing_mm)]
        frames = zip(truth, prediction, strict=True)
        return [MaskPair(*frame, tuple(spacing_mm)[1:]) for frame in frames]

    def _row(
        self,
        values: Callable[[int], list[float]],
        regions: Sequence[str],
        annotated: Sequence[bool] | None,
    ) -> dict[str, float]:
        """Row of the columns of all regions, metric by metric."""
        unknown = [math.nan] * len(self.metrics)
        known = [True] * len(regions) if annotated is None else annotated
        columns = [values(i) if known[i] else unknown for i in range(len(regions))]
        return {
            f"{metric.name}_{region}": column[m]
            for m, metric in enumerate(self.metrics)
            for region, column in zip(regions, columns, strict=True)
        }


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
