"""A case as the network sees it, and its predictions back on the case's own grid."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from crossdim_jax.imaging import normalise, preprocess, resample, spacing
from crossdim_jax.imaging.case import Case, Prepared

Statistics = Sequence[Mapping[str, float] | None]


def prepare(
    case: Case,
    names: Sequence[str],
    schemes: Sequence[str],
    statistics: Statistics,
    *,
    size: tuple[int, int] | None = None,
    spacing_mm: tuple[float, ...] | None = None,
) -> Prepared:
    """Crops away the blank outside of masked images, normalises each channel, and resamples.

    Args:
      case: with or without a label.
      names, schemes, statistics: of each channel, see `normalise.normalise`.
      size: (y, x) to which every slice is brought, for 2D networks; these are not cropped, and all
        of their pixels are inside. None for volumes.
      spacing_mm: (z, y, x) to which volumes are resampled; None: they keep their grid.
    """
    full_shape = case.image.shape[:3]
    inside = np.ones(case.image.shape, bool)
    if size is None:
        inside = preprocess.inside(case.image)[0]
    bbox = tuple((0, length) for length in full_shape)
    if size is None and inside.any():
        bbox = preprocess.crop_to_inside(inside)
    box = tuple(slice(*bounds) for bounds in bbox)
    image, inside, notes = case.image[box], inside[box], []
    channels = np.empty(image.shape, np.float32)
    for i, (name, scheme, given) in enumerate(zip(names, schemes, statistics, strict=True)):
        channels[..., i], note = normalise.normalise(image[..., i], inside[..., i], scheme, given)
        if note:
            notes.append(f"{name}: {note}")
    label = None if case.label is None else np.ascontiguousarray(case.label[box])
    if size is not None:
        channels = resample.resize(channels, size)
        label = None if label is None else _nearest(label, size)
    shape, separate = spacing.grid(image.shape[:3], case.spacing_mm, spacing_mm)
    if spacing_mm is not None:
        channels = spacing.resample_image(channels, shape, separate)
        label = None if label is None else spacing.resample_label(label, shape, separate)
    return Prepared(channels, label, bbox, full_shape, case.spacing_mm, case.kind, "; ".join(notes))


def _nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(z, y, x) -> (z, *size): the value at each new pixel's centre; edges of grids coincide."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, label.shape[1:], strict=True)
    )
    return np.ascontiguousarray(label[:, rows[:, None], columns])


def restore(
    probabilities: np.ndarray,
    prepared: Prepared,
    decode: Callable[[np.ndarray], np.ndarray],
    *,
    spacing_mm: tuple[float, ...] | None = None,
) -> np.ndarray:
    """Probabilities (z, y, x, k) of a prepared case -> label (z, y, x) on the case's own grid.

    Slices of another size, and volumes of another spacing, are brought back as probabilities, one
    slice at a time: a border may then lie between the network's voxels, and memory holds one slice
    of all classes.
    """
    box = tuple(stop - start for start, stop in prepared.bbox)
    if probabilities.shape[:3] == box:
        label = decode(probabilities)
    elif spacing_mm is not None:
        separate = spacing.grid(box, prepared.spacing_mm, spacing_mm).separate
        slices = spacing.probability_slices(probabilities, box, separate)
        label = np.stack([decode(one) for one in slices])
    else:
        slices = (resample.resize(one[None], box[1:]) for one in probabilities)
        label = np.concatenate([decode(one) for one in slices])
    return preprocess.uncrop(label, prepared.bbox, prepared.full_shape)
