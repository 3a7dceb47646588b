"""Resampling of slices to another size: linear for images, nearest for labels."""

from collections.abc import Sequence

import numpy as np
from PIL import Image


def resize(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes (z, y, x, c) to (z, *size, c) float32, slice by slice, linearly.

    Pixels are areas: the edges of both grids coincide, whatever their sizes. When a slice shrinks,
    each new pixel is a weighted mean of all those under it, so that nothing aliases.
    """
    return _resized(image, size, np.float32, Image.Resampling.BILINEAR)


def resize_label(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes (z, y, x) uint8 to (z, *size), slice by slice: the value at each pixel's centre."""
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
