"""The scores of CAMUS: overlap and distances of contours in echocardiograms, image by image."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from crossdim_jax.metrics import overlap, surface

# How the two directed sets of distances become a mean absolute distance.
MAD = {"pooled": surface.mean_pooled, "masd": surface.mean_of_means}
METRICS = ("dice", "mad_mm", "hd_mm")


def camus(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    regions: Sequence[str],
    spacing_mm: Sequence[float],
    mad: str = "pooled",
) -> dict[str, float]:
    """One case's row: "dice_LVendo", ..., "mad_mm_LVendo", ..., "hd_mm_LVendo", ...

    Every image by itself; a film has the mean over its frames. Distances are between borders, mask
    minus its erosion by the 4-neighbourhood with the outside counted as background; they are NaN
    where a mask is empty, and such frames are left out of a film's mean.

    Args:
      truth, prediction: (frame, row, column, r) boolean, one channel per name of `regions`.
      regions: their names.
      spacing_mm: (frame, row, column), the first not used.
      mad: a key of `MAD`; published texts do not say which is meant.

    Source: Leclerc et al. 2019 and its evaluation platform; Messaoudi et al. 2023, Eq. 1 to 4.
    """
    if mad not in MAD:
        raise ValueError(f"unknown mad {mad!r}; known: {', '.join(sorted(MAD))}")
    if truth.shape[-1] != len(regions):
        raise ValueError(f"truth has {truth.shape[-1]} channels for regions {tuple(regions)}")
    if truth.shape != prediction.shape:
        return camus_mismatch(regions=regions)
    spacing = tuple(spacing_mm)[-2:]
    columns = {}
    for k, region in enumerate(regions):
        frames = [
            _image(a[..., k], b[..., k], spacing, MAD[mad])
            for a, b in zip(truth, prediction, strict=True)
        ]
        columns[region] = [_mean(values) for values in zip(*frames, strict=True)]
    return {
        f"{metric}_{region}": columns[region][m]
        for m, metric in enumerate(METRICS)
        for region in regions
    }


def camus_mismatch(*, regions: Sequence[str]) -> dict[str, float]:
    """The row of a case whose shape or geometry is not the truth's: Dice 0, distances NaN."""
    worst = {"dice": 0.0, "mad_mm": math.nan, "hd_mm": math.nan}
    return {f"{metric}_{region}": worst[metric] for metric in METRICS for region in regions}


def _image(
    truth: np.ndarray,
    prediction: np.ndarray,
    spacing: tuple[float, ...],
    mean: Callable[[tuple[np.ndarray, np.ndarray]], float],
) -> tuple[float, float, float]:
    dice = float(overlap.dice(truth, prediction))
    if not truth.any() or not prediction.any():
        return dice, math.nan, math.nan
    distances = surface.border_distances(truth, prediction, spacing=spacing)
    return dice, mean(distances), surface.maximum(distances)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
