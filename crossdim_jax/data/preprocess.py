"""From a case to what a network sees, and back: brain crop or one size of slices, and z-scores.

BraTS images are exactly 0 outside the brain, so "the brain" is where a modality is not zero.
Resampling leaves small negative values inside the brain, therefore non-zero and not positive.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from crossdim_jax.challenges import Case

# (start, stop) of each spatial axis: (z, y, x), half open.
BBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# What `preprocess` does, for keys of derived files; change it when the result changes.
PARAMETERS = {"crop": "any modality non-zero", "margin": 0, "norm": "z-score over non-zero"}


@dataclasses.dataclass
class Prepared:
    """A case as a network sees it.

    Attributes:
      image: (z, y, x, c) float32, z-scored.
      label: (z, y, x) uint8 on the same grid, or None.
      bbox: where the image lay in the full volume.
      full_shape: (z, y, x) of the full volume.
      spacing_mm: (z, y, x) of the full volume.
      kind: as in `CaseFiles`.
    """

    image: np.ndarray
    label: np.ndarray | None
    bbox: BBox
    full_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    kind: str = ""


def crop_to_brain(image: np.ndarray, *, margin: int = 0) -> BBox:
    """The smallest box that holds every voxel in which any modality is non-zero.

    Args:
      image: (z, y, x, c).
      margin: voxels added on each side, within the volume.

    Raises ValueError if the image is zero everywhere.
    """
    brain = image.any(axis=-1)
    box = []
    for axis, length in enumerate(brain.shape):
        others = tuple(i for i in range(brain.ndim) if i != axis)
        occupied = np.flatnonzero(brain.any(axis=others))
        if not occupied.size:
            raise ValueError("every voxel of the image is zero: there is no brain to crop to")
        start, stop = int(occupied[0]) - margin, int(occupied[-1]) + 1 + margin
        box.append((max(start, 0), min(stop, length)))
    return tuple(box)


def zscore(image: np.ndarray) -> np.ndarray:
    """(z, y, x, c) -> float32 of the same shape: each channel minus mean, over sd.

    Mean and sd (population) are those of the channel's non-zero voxels; its zeros stay 0. A
    channel that is constant there becomes 0 everywhere. Source: Messaoudi et al. 2023,
    pre-processing of the BraTS experiments.
    """
    result = np.zeros(image.shape, np.float32)
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        inside = values != 0
        values = values[inside].astype(np.float64)
        if not values.size:
            continue
        deviation = values.std()
        # Relative: the sd of equal float values is rounding noise, not zero.
        if deviation > 1e-6 * np.abs(values).max():
            result[..., channel][inside] = (values - values.mean()) / deviation
    return result


def brain(case: "Case") -> Prepared:
    """Crops to the brain and z-scores; the same with and without a label."""
    bbox = crop_to_brain(case.image, margin=PARAMETERS["margin"])
    box = tuple(slice(*bounds) for bounds in bbox)
    return Prepared(
        image=zscore(case.image[box]),
        label=None if case.label is None else np.ascontiguousarray(case.label[box]),
        bbox=bbox,
        full_shape=case.image.shape[:3],
        spacing_mm=case.spacing_mm,
        kind=case.kind,
    )


STATISTICS = {"slice": (1, 2), "volume": (0, 1, 2)}  # over which axes mean and sd are taken


def slices(case: "Case", size: Sequence[int], *, statistics: str = "slice") -> Prepared:
    """z-scores over all pixels and brings every slice to one size; with or without a label.

    Args:
      case: any.
      size: (y, x) of the result.
      statistics: mean and sd of each "slice" or of the whole "volume", for each channel. Slices
        that are constant become 0.
    """
    axes = STATISTICS[statistics]
    image = case.image.astype(np.float64)
    mean, deviation = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    # Relative: the sd of equal float values is rounding noise, not zero.
    varies = deviation > 1e-6 * np.abs(image).max(axes, keepdims=True)
    image = np.where(varies, (image - mean) / np.where(varies, deviation, 1), 0)
    full_shape = case.image.shape[:3]
    return Prepared(
        image=resize(image.astype(np.float32), size),
        label=None if case.label is None else resize_label(case.label, size),
        bbox=tuple((0, length) for length in full_shape),
        full_shape=full_shape,
        spacing_mm=case.spacing_mm,
        kind=case.kind,
    )


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(z, y, x, c) -> (z, *size, c) float32, slice by slice, linear.

    Pixels are areas: the edges of both grids coincide, whatever their sizes. When a slice shrinks,
    each new pixel is a weighted mean of all those under it, so that nothing aliases.
    """
    return _resized(image, size, np.float32, Image.Resampling.BILINEAR)


def resize_label(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(z, y, x) uint8 -> (z, *size), slice by slice: the value at each new pixel's centre."""
    return _resized(label[..., None], size, np.uint8, Image.Resampling.NEAREST)[..., 0]


def _resized(array, size, dtype, how) -> np.ndarray:
    rows, columns = (int(n) for n in size)
    if array.shape[1:3] == (rows, columns):
        return np.ascontiguousarray(array, dtype)
    result = np.empty((array.shape[0], rows, columns, array.shape[-1]), dtype)
    for z in range(array.shape[0]):
        for c in range(array.shape[-1]):
            plane = Image.fromarray(np.ascontiguousarray(array[z, ..., c], dtype))
            result[z, ..., c] = plane.resize((columns, rows), how)
    return result


def uncrop(label_crop: np.ndarray, bbox: BBox, full_shape: tuple[int, int, int]) -> np.ndarray:
    """Puts a cropped label (z, y, x) back into a full volume of background."""
    expected = tuple(stop - start for start, stop in bbox)
    if label_crop.shape != expected:
        raise ValueError(f"the crop has shape {label_crop.shape}, its box {expected}")
    full = np.zeros(full_shape, label_crop.dtype)
    full[tuple(slice(*bounds) for bounds in bbox)] = label_crop
    return full
