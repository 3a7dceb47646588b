"""Metrics of CAMUS: overlap and distances of contours in echocardiograms, frame by frame.

Source: Leclerc et al. 2019 and its evaluation platform; Messaoudi et al. 2023, Eq. 1 to 4. None of
them says which mean the mean absolute distance is, so both are here.
"""

import math
from collections.abc import Callable

from crossdim_jax.metrics import overlap, surface
from crossdim_jax.metrics.profile import MaskPair, Metric, border_distances_mm, percentage

# How the two directed sets of distances become a mean absolute distance: function, in words.
MAD = {
    "pooled": (surface.mean_pooled, "mean over all directed border distances pooled"),
    "masd": (surface.mean_of_means, "mean of the two directed means of border distances"),
}


def _of_distances(reduce: Callable) -> Callable[[MaskPair], float]:
    """Metric of the border distances in mm; NaN where a mask is empty."""

    def function(pair: MaskPair) -> float:
        distances = pair.once(border_distances_mm)
        return math.nan if distances is None else reduce(distances)

    return function


def metrics(mad: str) -> tuple[Metric, ...]:
    """Dice, mean absolute distance and Hausdorff distance. mad: a key of `MAD`."""
    mean, words = MAD[mad]
    return (
        percentage(
            "dice",
            overlap.dice,
            "Dice",
            "2 TP / (2 TP + FP + FN), image by image; both masks empty 1, one empty 0; "
            "shape or geometry mismatch 0",
        ),
        Metric(
            "mad_mm",
            _of_distances(mean),
            "MAD",
            f"{words}, in mm; border = mask minus its erosion by the 4-neighbourhood, outside "
            "counted as background; one mask empty: undefined",
            unit="mm",
        ),
        Metric(
            "hd_mm",
            _of_distances(surface.maximum),
            "HD",
            "the larger of the two directed maxima of the same distances, in mm "
            "(symmetric Hausdorff distance)",
            unit="mm",
        ),
    )
