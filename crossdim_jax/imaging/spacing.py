"""Resampling between voxel spacings: of images, labels, and probabilities on their way back.

The rules are nnU-Net's (resampling/default_resampling.py, version 2.8.1): cubic splines for images,
linear for labels and probabilities. Volumes whose slices are much thicker than wide are resampled
within the slices, and the nearest slice is taken along the thick axis: there, neighbours have
little to say of each other. Voxels are areas, the edges of both grids coincide. A volume that needs
none of this is returned as it is.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from crossdim_jax.errors import ConfigError

ANISOTROPIC = 3.0  # thickest over thinnest edge of a voxel, above which an axis is separate
_MOST_VOXELS = 2**31  # of a volume; above it, a slip in a spacing


class Grid(NamedTuple):
    """Result of `grid`.

    Attributes:
      shape: (z, y, x) after resampling.
      separate: the axis along which the nearest slice is taken; None if there is none.
    """

    shape: tuple[int, ...]
    separate: int | None


def grid(
    shape: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float] | None
) -> Grid:
    """Grid of a volume after resampling.

    Args:
      shape: (z, y, x) before.
      spacing_mm: (z, y, x) before.
      target_mm: (z, y, x) after; None: the volume is not resampled.

    Raises ConfigError if the target would make more voxels than any volume has.
    """
    if target_mm is None:
        return Grid(tuple(int(n) for n in shape), None)
    exact = [n * old / new for n, old, new in zip(shape, spacing_mm, target_mm, strict=True)]
    if not np.prod(exact) < _MOST_VOXELS:
        raise ConfigError(
            f"spacing_mm is {tuple(target_mm)}: a volume of {tuple(shape)} voxels of "
            f"{tuple(spacing_mm)} mm would become {np.prod(exact):.3g} voxels; choose a coarser one"
        )
    after = tuple(max(1, round(n)) for n in exact)
    return Grid(after, separate_axis(spacing_mm, target_mm))


def separate_axis(spacing_mm: Sequence[float], target_mm: Sequence[float]) -> int | None:
    """Axis along which the nearest slice is taken; None if all axes are alike.

    The thickest of the spacing before, if it is anisotropic, else of the one after. None where two
    axes are thickest: these are needles, not slices.
    """
    for spacing in (spacing_mm, target_mm):
        if max(spacing) > ANISOTROPIC * min(spacing):
            thickest = [axis for axis, edge in enumerate(spacing) if edge == max(spacing)]
            return thickest[0] if len(thickest) == 1 else None
    return None


def resample_image(
    image: np.ndarray, shape: Sequence[int], separate: int | None = None
) -> np.ndarray:
    """Resamples (z, y, x, c) to (*shape, c) float32 with cubic splines, nearest along `separate`.

    No value leaves the range of its channel, as cubic splines would beside an edge.
    """
    shape = tuple(shape)
    if image.shape[:-1] == shape:
        return image
    if separate is not None:
        image = image.take(_nearest(image.shape[separate], shape[separate]), separate)
    result = np.empty((*shape, image.shape[-1]), np.float32)
    for channel in range(image.shape[-1]):
        volume = image[..., channel]
        planes = [volume] if separate is None else np.moveaxis(volume, separate, 0)
        resampled = result[..., channel]
        targets = [resampled] if separate is None else np.moveaxis(resampled, separate, 0)
        low, high = volume.min(), volume.max()
        for plane, target in zip(planes, targets, strict=True):
            target[...] = _cubic(plane, target.shape).clip(low, high)
    return result


def resample_label(
    label: np.ndarray, shape: Sequence[int], separate: int | None = None
) -> np.ndarray:
    """Resamples label values (z, y, x) to `shape`: each value linearly, then the largest share.

    Equal shares go to the larger value, so that a structure one voxel wide outlives a halving.
    """
    shape = tuple(shape)
    if label.shape == shape:
        return label
    result = np.empty(shape, label.dtype)
    low, high, share = _between(label.shape[0], shape[0], nearest=separate == 0)
    for z in range(shape[0]):
        pair = label[[low[z], high[z]]] if share[z] else label[low[z]][None]
        values = np.unique(pair)
        one_hot = (pair[..., None] == values).astype(np.float32)
        shares = _plane(one_hot, share[z], shape[1:], separate)
        result[z] = values[::-1][shares[..., ::-1].argmax(-1)]
    return result


def probability_slices(
    probabilities: np.ndarray, shape: Sequence[int], separate: int | None = None
) -> Iterator[np.ndarray]:
    """Yields the slices (y, x, k) float32 of probabilities (z, y, x, k) brought to `shape`.

    Linear, nearest along `separate`. One slice at a time: all classes of a whole volume on its own
    grid may be more than memory holds, while the label that is made of them is small.
    """
    shape = tuple(shape)
    low, high, share = _between(probabilities.shape[0], shape[0], nearest=separate == 0)
    for z in range(shape[0]):
        if share[z]:
            pair = np.stack([probabilities[low[z]], probabilities[high[z]]])
        else:
            pair = probabilities[low[z]][None]
        yield _plane(pair.astype(np.float32, copy=False), share[z], shape[1:], separate)


def _cubic(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    if array.shape == tuple(shape):
        return array
    zoom = [new / old for new, old in zip(shape, array.shape, strict=True)]
    options = {"order": 3, "mode": "nearest", "grid_mode": True}
    return ndimage.zoom(array.astype(np.float64), zoom, **options)


def _plane(pair: np.ndarray, share: float, size: Sequence[int], separate: int | None) -> np.ndarray:
    """One slice of `size` from those around it: (1 or 2, y, x, k) -> (*size, k)."""
    plane = pair[0] if len(pair) == 1 else pair[0] * (1 - share) + pair[1] * share
    for axis, length in enumerate(size):
        plane = _linear(plane, axis, length, nearest=separate == axis + 1)
    return plane


def _linear(array: np.ndarray, axis: int, length: int, *, nearest: bool) -> np.ndarray:
    if array.shape[axis] == length:
        return array
    low, high, share = _between(array.shape[axis], length, nearest=nearest)
    if nearest:
        return array.take(low, axis)
    share = share.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    return array.take(low, axis) * (1 - share) + array.take(high, axis) * share


def _between(old: int, new: int, *, nearest: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Voxels before and after each new centre, and the share of the latter, float32."""
    if nearest or old == new:
        low = _nearest(old, new)
        return low, low, np.zeros(new, np.float32)
    centre = ((np.arange(new) + 0.5) * old / new - 0.5).clip(0, old - 1)
    low = np.floor(centre).astype(int)
    return low, np.minimum(low + 1, old - 1), (centre - low).astype(np.float32)


def _nearest(old: int, new: int) -> np.ndarray:
    """Voxel in which each new centre lies; of one on a face, the later."""
    return np.minimum((2 * np.arange(new) + 1) * old // (2 * new), old - 1)
