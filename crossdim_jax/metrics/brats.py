"""The official BraTS evaluations, as named profiles."""

import math
from collections.abc import Sequence

import numpy as np

from crossdim_jax.metrics import overlap, surface

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


METRICS = {
    "dice": overlap.dice,
    "hd95": hd95,
    "sensitivity": overlap.sensitivity,
    "specificity": overlap.specificity,
}


def brats2022(
    truth: np.ndarray, prediction: np.ndarray, *, regions: Sequence[str]
) -> dict[str, float]:
    """One case's row by the official 2021/22 evaluation: "dice_WT", "hd95_WT", ...

    truth, prediction: (z, y, x, k) boolean, one channel per name of `regions`. Shapes that differ
    score as a mismatch. Source: the evaluation code of the BraTS 2021/22 platform.
    """
    if truth.shape[-1] != len(regions):
        raise ValueError(f"truth has {truth.shape[-1]} channels for regions {tuple(regions)}")
    if truth.shape != prediction.shape:
        return brats2022_mismatch(regions=regions)
    channels = [(truth[..., i], prediction[..., i]) for i in range(len(regions))]
    return {
        f"{name}_{region}": float(metric(*pair))
        for name, metric in METRICS.items()
        for region, pair in zip(regions, channels, strict=True)
    }


def brats2022_mismatch(*, regions: Sequence[str]) -> dict[str, float]:
    """The row of a case whose shape or geometry does not match the truth: Dice 0, HD95 374.

    The platform says nothing on sensitivity and specificity there; 0 keeps a failed case from
    improving a mean.
    """
    worst = {"dice": 0.0, "hd95": MISMATCH_HD95, "sensitivity": 0.0, "specificity": 0.0}
    return {f"{name}_{region}": worst[name] for name in METRICS for region in regions}
