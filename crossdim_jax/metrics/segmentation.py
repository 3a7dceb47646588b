"""The metrics of any segmentation: Dice, surface distance at a tolerance, HD95 in mm, volumes.

Rules, as nnU-Net's for Dice: a structure that is absent in truth and prediction is not scored (NaN,
left out of means); one that is absent in one of them scores worst.
"""

import math

import numpy as np

from crossdim_jax.metrics import overlap, surface
from crossdim_jax.metrics.profile import MaskPair, Metric, border_distances_mm

_ABSENT = "absent in both: not scored"
_BORDER = (
    "border = mask minus its erosion by the 6-neighbourhood, outside counted as background, each "
    "voxel of it counted once"
)


def metrics(tolerance_mm: float) -> tuple[Metric, ...]:
    """The rows, with surface distances within `tolerance_mm` taken as right."""

    def nsd(pair: MaskPair) -> float:
        distances = pair.once(border_distances_mm)
        if distances is None:
            return _if_empty(pair, 0.0)
        pooled = np.concatenate(distances)
        return float(np.count_nonzero(pooled <= tolerance_mm) / pooled.size)

    return (
        Metric(
            "dice",
            lambda pair: _if_empty(pair, overlap.dice(pair.truth, pair.prediction)),
            "Dice",
            f"2 TP / (2 TP + FP + FN); absent in one 0, {_ABSENT}; shape or geometry mismatch 0",
            unit="%",
            factor=100.0,
            mismatch=0.0,
        ),
        Metric(
            "nsd",
            nsd,
            "NSD",
            "normalised surface distance: share of the border voxels of truth and prediction that "
            f"lie within {tolerance_mm:g} mm of the other's border; {_BORDER}; absent in one 0, "
            f"{_ABSENT}; shape or geometry mismatch 0",
            unit="%",
            factor=100.0,
            mismatch=0.0,
        ),
        Metric(
            "hd95_mm",
            _hd95_mm,
            "HD95",
            "95th percentile (linear) of both directed sets of distances between the same borders "
            "together, in mm; absent in one, or shape or geometry mismatch: the diagonal of the "
            f"volume; {_ABSENT}",
            unit="mm",
            mismatch=lambda diagonal_mm: diagonal_mm,
        ),
        Metric(
            "volume_ml",
            lambda pair: _volume_ml(pair.prediction, pair),
            "Volume",
            "of the prediction: its voxels times their size; 0 where absent",
            unit="ml",
        ),
        Metric(
            "true_volume_ml",
            lambda pair: _volume_ml(pair.truth, pair),
            "True volume",
            "of the truth, likewise",
            unit="ml",
        ),
    )


def _if_empty(pair: MaskPair, value: float) -> float:
    """The value, but NaN where both masks are empty."""
    return value if pair.truth.any() or pair.prediction.any() else math.nan


def _hd95_mm(pair: MaskPair) -> float:
    distances = pair.once(border_distances_mm)
    if distances is None:
        return _if_empty(pair, pair.diagonal_mm)
    return surface.percentile_pooled(distances, 95)


def _volume_ml(mask: np.ndarray, pair: MaskPair) -> float:
    return np.count_nonzero(mask) * math.prod(pair.spacing_mm) / 1000
