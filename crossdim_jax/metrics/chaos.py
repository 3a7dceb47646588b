"""The official CHAOS evaluation: four metrics of an organ, and the four scores made of them.

Kavur et al. 2021 (CHAOS challenge), Sect. 3.4, and the challenge's published evaluation code.
"""

import math
from collections.abc import Sequence

import numpy as np

from crossdim_jax.metrics import overlap, surface

# metric -> (the best score is lost by so much per unit, and is 0 beyond this value)
THRESHOLDS = {
    "ravd": (20.0, 5.0),  # per cent
    "assd_mm": (20 / 3, 15.0),
    "mssd_mm": (5 / 3, 60.0),
}
DICE_THRESHOLD = 0.8
METRICS = ("dice", "ravd", "assd_mm", "mssd_mm")
SCORES = ("score_dice", "score_ravd", "score_assd", "score_mssd", "score")


def ravd(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Relative absolute volume difference in per cent of the truth, which must not be empty."""
    # Python integers: counts of unsigned type would wrap where the prediction is the smaller one.
    voxels, predicted = int(np.count_nonzero(truth)), int(np.count_nonzero(prediction))
    return 100.0 * abs(predicted - voxels) / voxels


def surface_distances_mm(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[float, float]:
    """(ASSD, MSSD): mean and maximum of all distances from each border to the other, in mm.

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


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """Length of the volume's diagonal: its voxels times their size."""
    return math.hypot(*(n * s for n, s in zip(shape, spacing_mm, strict=True)))


def scores(row: dict[str, float]) -> dict[str, float]:
    """The four scores of `METRICS`, 0 to 100, and their mean `score`."""
    dice = row["dice"]
    found = {"score_dice": 100.0 * dice if dice >= DICE_THRESHOLD else 0.0}
    for metric, (loss, limit) in THRESHOLDS.items():
        value = row[metric]
        name = "score_" + metric.removesuffix("_mm")
        found[name] = 100.0 - loss * value if value <= limit else 0.0
    return found | {"score": sum(found.values()) / len(found)}


def organ(
    truth: np.ndarray, prediction: np.ndarray, spacing_mm: Sequence[float]
) -> dict[str, float]:
    """Metrics and scores of one organ in one volume.

    truth, prediction: boolean, of equal shape. One of them empty scores as `worst`. Both empty: the
    organ is not in this volume and there is nothing to score, all NaN (our choice: the challenge's
    volumes hold every organ).
    """
    if not truth.any() and not prediction.any():
        return dict.fromkeys((*METRICS, *SCORES), float("nan"))
    if not truth.any() or not prediction.any():
        return worst(diagonal_mm(truth.shape, spacing_mm))
    assd_mm, mssd_mm = surface_distances_mm(truth, prediction, spacing_mm)
    row = {
        "dice": overlap.dice(truth, prediction),
        "ravd": ravd(truth, prediction),
        "assd_mm": assd_mm,
        "mssd_mm": mssd_mm,
    }
    return row | scores(row)


def worst(distance_mm: float) -> dict[str, float]:
    """The row of a mismatch or of one empty mask: Dice 0, RAVD 100, distances the diagonal.

    Its scores follow from these: 0, unless the volume is smaller than any patient.
    """
    row = {"dice": 0.0, "ravd": 100.0, "assd_mm": distance_mm, "mssd_mm": distance_mm}
    return row | scores(row)


def chaos_scores(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    regions: Sequence[str],
    spacing_mm: Sequence[float],
    annotated: Sequence[bool] | None = None,
) -> dict[str, float]:
    """One case's row by the official evaluation: "dice_liver", ..., "score_liver", ...

    Args:
      truth, prediction: (z, y, x, r) boolean, one channel per name of `regions`. Shapes that differ
        score as a mismatch.
      regions: names of the organs.
      spacing_mm: (z, y, x).
      annotated: whether the truth knows each region; what it does not know is NaN. None: all.
    """
    if truth.shape[-1] != len(regions):
        raise ValueError(f"truth has {truth.shape[-1]} channels for regions {tuple(regions)}")
    if truth.shape != prediction.shape:
        far = diagonal_mm(truth.shape[:-1], spacing_mm)
        return chaos_mismatch(regions=regions, distance_mm=far, annotated=annotated)
    rows = [
        organ(truth[..., i], prediction[..., i], spacing_mm)
        if annotated is None or annotated[i]
        else dict.fromkeys((*METRICS, *SCORES), float("nan"))
        for i in range(len(regions))
    ]
    return _flat(rows, regions)


def chaos_mismatch(
    *,
    regions: Sequence[str],
    distance_mm: float = float("nan"),
    annotated: Sequence[bool] | None = None,
) -> dict[str, float]:
    """The row of a case whose shape or geometry is not the truth's.

    distance_mm: the diagonal of the truth's volume; NaN where it is not known.
    """
    known = [True] * len(regions) if annotated is None else annotated
    nothing = dict.fromkeys((*METRICS, *SCORES), float("nan"))
    return _flat([worst(distance_mm) if there else nothing for there in known], regions)


def _flat(rows: Sequence[dict[str, float]], regions: Sequence[str]) -> dict[str, float]:
    return {
        f"{metric}_{region}": float(row[metric])
        for metric in (*METRICS, *SCORES)
        for region, row in zip(regions, rows, strict=True)
    }
