"""Distances between the borders of two binary masks.

Published definitions differ in three places, so each is an argument: whether the world outside the
volume counts as background (a mask's voxel on the volume's edge is then border) or as foreground
(it is not); the voxel spacing; and how the two directed sets of distances become one number. The
difference reaches 40 %: a number without its definition means little.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from crossdim_jax.errors import lookup

OUTSIDE = {"background": 0, "foreground": 1}


def border(mask: np.ndarray, outside: str = "background") -> np.ndarray:
    """Voxels of `mask` with a face neighbour (6 in 3D, 4 in 2D) that is not in it.

    mask: boolean, any rank. outside: what lies beyond the volume's edge, "background" or
    "foreground". Equals mask ^ erosion(mask) by the face-connected cross.
    """
    beyond = lookup("outside", outside, OUTSIDE)
    cross = ndimage.generate_binary_structure(mask.ndim, 1)
    return mask & ~ndimage.binary_erosion(mask, cross, border_value=beyond)


def union_box(a: np.ndarray, b: np.ndarray, margin: int = 1) -> tuple[slice, ...]:
    """Smallest box around both masks, widened by `margin` voxels inside the volume.

    With a margin of one voxel the border of a cropped mask is exact for either `outside`: a face
    of the box is either the volume's own edge or a layer of background. Raises ValueError if both
    masks are empty.
    """
    slices = []
    for axis in range(a.ndim):
        others = tuple(i for i in range(a.ndim) if i != axis)
        occupied = np.flatnonzero(a.any(axis=others) | b.any(axis=others))
        if not occupied.size:
            raise ValueError("both masks are empty")
        start, stop = int(occupied[0]) - margin, int(occupied[-1]) + 1 + margin
        slices.append(slice(max(start, 0), min(stop, a.shape[axis])))
    return tuple(slices)


def directed_distances(
    a: np.ndarray, b: np.ndarray, spacing: Sequence[float] | None = None
) -> np.ndarray:
    """Euclidean distance from every point of `a` to the nearest point of `b`, in C order of `a`.

    a, b: boolean borders of equal shape, neither empty. spacing: length of a voxel per axis;
    None counts voxels.
    """
    if not a.any() or not b.any():
        raise ValueError("no distance from or to an empty set")
    return ndimage.distance_transform_edt(~b, sampling=spacing)[a]


def border_distances(
    truth: np.ndarray,
    prediction: np.ndarray,
    *,
    spacing: Sequence[float] | None = None,
    outside: str = "background",
) -> tuple[np.ndarray, np.ndarray]:
    """Directed distances between borders: (truth's to prediction's, prediction's to truth's).

    Raises ValueError if a mask, or the border of a mask, is empty: what that is worth is the
    profile's decision.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"masks differ in shape: {truth.shape} and {prediction.shape}")
    box = union_box(truth, prediction)
    of_truth = border(truth[box], outside)
    of_prediction = border(prediction[box], outside)
    return (
        directed_distances(of_truth, of_prediction, spacing),
        directed_distances(of_prediction, of_truth, spacing),
    )


def percentile_pooled(distances: tuple[np.ndarray, np.ndarray], percent: float) -> float:
    """Percentile (linear interpolation) of both directed sets concatenated; 95 is BraTS's HD95."""
    return float(np.percentile(np.concatenate(distances), percent))


def mean_pooled(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean over both directed sets pooled: the average symmetric surface distance."""
    return float(np.concatenate(distances).mean())


def mean_of_means(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Mean of the two directed means, each border weighing one half."""
    return float((distances[0].mean() + distances[1].mean()) / 2)


def maximum(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Symmetric Hausdorff distance: the larger of the two directed maxima."""
    return float(max(distances[0].max(), distances[1].max()))
