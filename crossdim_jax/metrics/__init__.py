"""Scores of segmentations, on numpy and scipy alone, as named profiles.

A profile is one challenge's official definition, complete: the published packages disagree with
the official code and with one another. `overlap` and `surface` hold the parts, `aggregate` makes
the table. Nothing here knows about files, labels or models.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

from crossdim_jax.metrics.aggregate import MODES, aggregate
from crossdim_jax.metrics.brats import brats2022, brats2022_mismatch, hd95
from crossdim_jax.metrics.camus import camus, camus_mismatch
from crossdim_jax.metrics.chaos import chaos_mismatch, chaos_scores, diagonal_mm
from crossdim_jax.metrics.overlap import dice, sensitivity, specificity


@dataclasses.dataclass(frozen=True)
class Profile:
    """One official evaluation.

    score(truth, prediction, *, regions) -> row, where distances are in millimetres also with
    `spacing_mm` (z, y, x); mismatch(*, regions) -> the row of a case whose
    shape or geometry is not the truth's. definitions: {metric: one line saying what it is}, in the
    order of the columns; a metric is named as in `f"{metric}_{region}"`.
    """

    name: str
    score: Callable[..., dict[str, float]]
    mismatch: Callable[..., dict[str, float]]
    definitions: Mapping[str, str]


def _camus(name: str, mad: str, how: str) -> Profile:
    distance = (
        "border = mask minus its erosion by the 4-neighbourhood, outside counted as background; "
        "one mask empty: undefined"
    )
    return Profile(
        name=name,
        score=functools.partial(camus, mad=mad),
        mismatch=camus_mismatch,
        definitions={
            "dice": "2 TP / (2 TP + FP + FN), image by image; both masks empty 1, one empty 0; "
            "shape or geometry mismatch 0",
            "mad_mm": f"{how}, in mm; {distance}",
            "hd_mm": "the larger of the two directed maxima of the same distances, in mm "
            "(symmetric Hausdorff distance)",
        },
    )


PROFILES = {
    "brats2022": Profile(
        name="brats2022",
        score=brats2022,
        mismatch=brats2022_mismatch,
        definitions={
            "dice": "2 TP / (2 TP + FP + FN); both masks empty 1, one empty 0; shape or geometry "
            "mismatch 0",
            "hd95": "95th percentile (linear) of the concatenation of both directed border-to-"
            "border distances, in voxels, without spacing; border = mask minus its erosion by the "
            "6-neighbourhood, outside counted as background; both masks empty 0, one empty "
            "373.128664, shape or geometry mismatch 374",
            "sensitivity": "TP / (TP + FN); both masks empty 1, only the truth empty undefined",
            "specificity": "TN / (TN + FP) over the whole volume; both masks empty 1",
        },
    ),
    "camus": _camus("camus", "pooled", "mean over all directed border distances pooled"),
    "camus_masd": _camus(
        "camus_masd", "masd", "mean of the two directed means of border distances"
    ),
    "chaos": Profile(
        name="chaos",
        score=chaos_scores,
        mismatch=chaos_mismatch,
        definitions={
            "dice": "2 TP / (2 TP + FP + FN); one mask empty, or shape or geometry mismatch, 0 "
            "(and then RAVD 100, distances the volume's diagonal); both masks empty: not scored",
            "ravd": "100 |predicted - true volume| / true volume",
            "assd_mm": "mean of all border-to-border distances of both directions pooled; border = "
            "mask minus its erosion by the 6-neighbourhood, outside counted as foreground",
            "mssd_mm": "maximum of the same distances",
            "score_dice": "100 Dice if Dice >= 0.8, else 0",
            "score_ravd": "100 - 20 RAVD if RAVD <= 5, else 0",
            "score_assd": "100 - 20/3 ASSD if ASSD <= 15, else 0",
            "score_mssd": "100 - 5/3 MSSD if MSSD <= 60, else 0",
            "score": "mean of the four scores of an organ in a case",
        },
    ),
}

__all__ = [
    "MODES",
    "PROFILES",
    "Profile",
    "aggregate",
    "brats2022",
    "brats2022_mismatch",
    "camus",
    "camus_mismatch",
    "chaos_mismatch",
    "chaos_scores",
    "diagonal_mm",
    "dice",
    "hd95",
    "sensitivity",
    "specificity",
]
