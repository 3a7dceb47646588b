"""Metrics of the official BraTS 2021/22 evaluation.

Source: the evaluation code of the BraTS 2021/22 platform. It says nothing on sensitivity and
specificity of a prediction on another grid; 0 keeps a failed case from improving a mean.
"""

import math

import numpy as np

from crossdim_jax.metrics import overlap, surface
from crossdim_jax.metrics.profile import Metric, percentage

# The diagonal of the challenge's 240 x 240 x 155 volumes, whatever the size of the one at hand.
ONE_EMPTY_HD95 = math.sqrt(240**2 + 240**2 + 155**2)  # 373.128664
MISMATCH_HD95 = 374.0


def hd95(truth: np.ndarray, prediction: np.ndarray) -> float:
    """95th percentile of both directed border-to-border distances, concatenated; in voxels.

    Without spacing; the outside counts as background; 0 if both masks are empty, 373.128664 if
    one is. (The larger of the two directed percentiles, also called HD95, is up to 40 % more.)
    """
    if not truth.any() and not prediction.any():
        return 0.0
    if not truth.any() or not prediction.any():
        return ONE_EMPTY_HD95
    return surface.percentile_pooled(surface.border_distances(truth, prediction), 95)


METRICS = (
    percentage(
        "dice",
        overlap.dice,
        "Dice",
        "2 TP / (2 TP + FP + FN); both masks empty 1, one empty 0; shape or geometry mismatch 0",
    ),
    Metric(
        "hd95",
        lambda pair: hd95(pair.truth, pair.prediction),
        "HD95",
        "95th percentile (linear) of the concatenation of both directed border-to-"
        "border distances, in voxels, without spacing; border = mask minus its erosion by the "
        "6-neighbourhood, outside counted as background; both masks empty 0, one empty "
        "373.128664, shape or geometry mismatch 374",
        unit="voxels",
        mismatch=MISMATCH_HD95,
    ),
    percentage(
        "sensitivity",
        overlap.sensitivity,
        "Sensitivity",
        "TP / (TP + FN); both masks empty 1, only the truth empty undefined",
    ),
    percentage(
        "specificity",
        overlap.specificity,
        "Specificity",
        "TN / (TN + FP) over the whole volume; both masks empty 1",
    ),
)
