"""Metrics of the official CHAOS evaluation: four of an organ, and the scores made of them.

Kavur et al. 2021 (CHAOS challenge), Sect. 3.4, and the challenge's published evaluation code.
"""

import math
from collections.abc import Sequence

import numpy as np

from crossdim_jax.metrics import overlap, surface
from crossdim_jax.metrics.profile import MaskPair, Metric, diagonal_mm

# metric -> (the best score is lost by so much per unit, and is 0 beyond this value)
THRESHOLDS = {
    "ravd": (20.0, 5.0),  # per cent
    "assd_mm": (20 / 3, 15.0),
    "mssd_mm": (5 / 3, 60.0),
}
DICE_THRESHOLD = 0.8


def ravd(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Relative absolute volume difference in per cent of the truth, which must not be empty."""
    # Python integers: counts of unsigned type would wrap where the prediction is the smaller one.
    voxels, predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(prediction))
    return 100.0 * abs(predicted - voxels) / voxels


def surface_distances_mm(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """ASSD and MSSD: mean and maximum of all distances from each border to the other, in mm.

    Border = mask minus its erosion by the 6-neighbourhood, where the outside counts as foreground:
    voxels on the volume's edge are not border. A mask that fills the whole volume has no border:
    equal masks are then 0 apart, others the volume's diagonal. Neither mask may be empty.
    """
    try:
        distances = surface.border_distances(
            truth, prediction, spacing=spacing_mm, outside="foreground"
        )
    except ValueError:
        apart = 0.0 if np.array_equal(truth, prediction) else diagonal_mm(truth.shape, spacing_mm)
        return apart, apart
    return surface.mean_pooled(distances), surface.maximum(distances)


def scores(row: dict[str, float]) -> dict[str, float]:
    """Scores of the four metrics, 0 to 100, and their mean `score`."""
    dice = row["dice"]
    points = {"score_dice": 100.0 * dice if dice >= DICE_THRESHOLD else 0.0}
    for metric, (loss, limit) in THRESHOLDS.items():
        value = row[metric]
        name = "score_" + metric.removesuffix("_mm")
        points[name] = 100.0 - loss * value if value <= limit else 0.0
    return points | {"score": sum(points.values()) / len(points)}


def organ(pair: MaskPair) -> dict[str, float]:
    """Metrics and scores of one organ in one volume.

    One mask empty scores as `worst`. Both empty: the organ is not in this volume and there is
    nothing to score, all NaN (our choice: the challenge's volumes hold every organ).
    """
    truth, prediction = pair.truth, pair.prediction
    if not truth.any() and not prediction.any():
        return {metric.name: math.nan for metric in METRICS}
    if not truth.any() or not prediction.any():
        return worst(pair.diagonal_mm)
    assd_mm, mssd_mm = surface_distances_mm(truth, prediction, pair.spacing_mm)
    row = {
        "dice": overlap.dice(truth, prediction),
        "ravd": ravd(truth, prediction),
        "assd_mm": assd_mm,
        "mssd_mm": mssd_mm,
    }
    return row | scores(row)


def worst(distance_mm: float) -> dict[str, float]:
    """Row of a mismatch or of one empty mask: Dice 0, RAVD 100, distances the diagonal.

    Its scores follow from these: 0, unless the volume is smaller than any patient.
    """
    row = {"dice": 0.0, "ravd": 100.0, "assd_mm": distance_mm, "mssd_mm": distance_mm}
    return row | scores(row)


def _metric(
    name: str, heading: str, definition: str, unit: str = "", factor: float = 1.0
) -> Metric:
    return Metric(
        name,
        lambda pair: pair.once(organ)[name],
        heading,
        definition,
        unit,
        factor,
        mismatch=lambda diagonal_mm: worst(diagonal_mm)[name],
    )


METRICS = (
    _metric(
        "dice",
        "Dice",
        "2 TP / (2 TP + FP + FN); one mask empty, or shape or geometry mismatch, 0 "
        "(and then RAVD 100, distances the volume's diagonal); both masks empty: not scored",
        "%",
        100.0,
    ),
    _metric("ravd", "RAVD", "100 |predicted - true volume| / true volume", "%"),
    _metric(
        "assd_mm",
        "ASSD",
        "mean of all border-to-border distances of both directions pooled; border = "
        "mask minus its erosion by the 6-neighbourhood, outside counted as foreground",
        "mm",
    ),
    _metric("mssd_mm", "MSSD", "maximum of the same distances", "mm"),
    _metric("score_dice", "Dice score", "100 Dice if Dice >= 0.8, else 0"),
    _metric("score_ravd", "RAVD score", "100 - 20 RAVD if RAVD <= 5, else 0"),
    _metric("score_assd", "ASSD score", "100 - 20/3 ASSD if ASSD <= 15, else 0"),
    _metric("score_mssd", "MSSD score", "100 - 5/3 MSSD if MSSD <= 60, else 0"),
    _metric("score", "Mean score", "mean of the four scores of an organ in a case"),
)
