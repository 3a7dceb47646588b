"""From a case to what a network sees, and back: brain crop and z-scores.

BraTS images are exactly 0 outside the brain, so "the brain" is where a modality is not zero.
Resampling leaves small negative values inside the brain, therefore non-zero and not positive.
"""

import dataclasses

import numpy as np

from crossdim_jax.challenges import Case

# (start, stop) of each spatial axis: (z, y, x), half open.
BBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# What `preprocess` does, for keys of derived files; change it when the result changes.
PARAMETERS = {"crop": "any modality non-zero", "margin": 0, "norm": "z-score over non-zero"}


@dataclasses.dataclass
class Prepared:
    """A case as a network sees it.

    Attributes:
      image: (z, y, x, c) float32, cropped to the brain, z-scored; 0 where the file was 0.
      label: (z, y, x) uint8, cropped, or None.
      bbox: where the crop lay in the full volume.
      full_shape: (z, y, x) of the full volume.
      spacing_mm: (z, y, x).
    """

    image: np.ndarray
    label: np.ndarray | None
    bbox: BBox
    full_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


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


def preprocess(case: Case) -> Prepared:
    """Crops to the brain and z-scores; the same with and without a label."""
    bbox = crop_to_brain(case.image, margin=PARAMETERS["margin"])
    box = tuple(slice(*bounds) for bounds in bbox)
    return Prepared(
        image=zscore(case.image[box]),
        label=None if case.label is None else np.ascontiguousarray(case.label[box]),
        bbox=bbox,
        full_shape=case.image.shape[:3],
        spacing_mm=case.spacing_mm,
    )


def uncrop(label_crop: np.ndarray, bbox: BBox, full_shape: tuple[int, int, int]) -> np.ndarray:
    """Puts a cropped label (z, y, x) back into a full volume of background."""
    expected = tuple(stop - start for start, stop in bbox)
    if label_crop.shape != expected:
        raise ValueError(f"the crop has shape {label_crop.shape}, its box {expected}")
    full = np.zeros(full_shape, label_crop.dtype)
    full[tuple(slice(*bounds) for bounds in bbox)] = label_crop
    return full
