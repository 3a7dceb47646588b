"""Preparation of cases for a network, and back: brain crop or slices of one size, z-scores.

BraTS images are masked: exactly 0 outside the brain. A voxel inside may be 0 too, by chance in CT
or after resampling, so the outside is what of the zeros hangs together with the volume's border;
and an image is masked only if the edges of its volume are 0. See `outside`.
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from crossdim_jax.imaging import resample
from crossdim_jax.imaging.case import BBox, Case, Prepared

# What `preprocess` does, for keys of derived files; change it when the result changes.
PARAMETERS = {
    "outside": "zeros that hang together with the border, if most voxels of the edges are zero",
    "crop": "any modality inside",
    "margin": 0,
    "norm": "z-score over the inside",
}


def outside(volume: np.ndarray) -> np.ndarray | None:
    """Outside of a masked image, (z, y, x) bool; None if the image is not masked.

    Masked is an image of which more than half of the voxels on the twelve edges of the volume are
    exactly 0: a head never fills those, however tightly it was cropped, and in an image with air
    or tissue there few values are exactly 0. Its outside are the zeros that are connected by faces
    with the border of the volume; zeros within the brain are none of it.

    Args:
      volume: (z, y, x), one modality.
    """
    zero = volume == 0
    if not _most_of_the_edges(zero):
        return None
    box = _box(~zero)
    if box is None:
        return zero
    # What lies outside of the box is zero to the border: components within it are all there is.
    pieces, count = ndimage.label(zero[box])
    found = np.zeros(count + 1, bool)
    for axis in range(pieces.ndim):
        for face in (0, -1):
            found[np.take(pieces, face, axis)] = True
    found[0] = False  # the voxels that are not zero
    result = np.ones(zero.shape, bool)
    result[box] = found[pieces]
    return result


def inside(image: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Inside of an image (z, y, x, c), bool of the same shape; and the channels not masked.

    All voxels of a channel that is not masked are inside.
    """
    result, unmasked = np.ones(image.shape, bool), []
    for channel in range(image.shape[-1]):
        out = outside(image[..., channel])
        if out is None:
            unmasked.append(channel)
        else:
            result[..., channel] = ~out
    return result, unmasked


def _most_of_the_edges(zero: np.ndarray) -> bool:
    ends = [np.unique([0, length - 1]) for length in zero.shape]
    edges = []
    for axis in range(zero.ndim):
        along = [*ends[:axis], np.arange(zero.shape[axis]), *ends[axis + 1 :]]
        edges.append(zero[np.ix_(*along)].ravel())
    return np.concatenate(edges).mean() > 0.5


def _box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box that holds every true voxel; None if there is none."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        occupied = np.flatnonzero(mask.any(axis=others))
        if not occupied.size:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def crop_to_inside(inside: np.ndarray, *, margin: int = 0) -> BBox:
    """Smallest box that holds every voxel in which any modality is inside.

    Args:
      inside: (z, y, x, c) bool.
      margin: voxels added on each side, within the volume.

    Raises ValueError if nothing is inside.
    """
    box = _box(inside.any(axis=-1))
    if box is None:
        raise ValueError("every voxel of the image is zero: there is no brain to crop to")
    return tuple(
        (max(part.start - margin, 0), min(part.stop + margin, length))
        for part, length in zip(box, inside.shape, strict=False)
    )


def zscore(image: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Z-scores (z, y, x, c) float32: each channel minus its mean, over its sd.

    Mean and sd (population) are those of the channel's voxels inside; those outside become 0. A
    channel that is constant there becomes 0 everywhere. Source: Messaoudi et al. 2023,
    pre-processing of the BraTS experiments.

    Args:
      image: (z, y, x, c).
      inside: of the same shape, bool.
    """
    result = np.zeros(image.shape, np.float32)
    for channel in range(image.shape[-1]):
        within = inside[..., channel]
        values = image[..., channel][within].astype(np.float64)
        if not values.size:
            continue
        deviation = values.std()
        # Relative: the sd of equal float values is rounding noise, not zero.
        if deviation > 1e-6 * np.abs(values).max():
            result[..., channel][within] = (values - values.mean()) / deviation
    return result


def brain(case: Case, modalities: Sequence[str] = ()) -> Prepared:
    """Crops to the brain and z-scores; the same with and without a label.

    Where a modality is not masked (see `outside`), all of its voxels are inside: nothing is
    cropped, mean and sd are those of the whole volume, and the result's note says so.

    Args:
      case: any.
      modalities: names of the channels, for the note.

    Raises ValueError if the image holds NaN or infinity, or only zeros.
    """
    _check_finite(case.image)
    image, bbox, unmasked = crop_and_zscore(case.image)

    def named(channels: Sequence[int]) -> list[str]:
        return [modalities[i] if modalities else f"channel {i}" for i in channels]

    flat = [i for i in range(image.shape[-1]) if not image[..., i].any()]
    box = tuple(slice(*bounds) for bounds in bbox)
    return Prepared(
        image=image,
        label=None if case.label is None else np.ascontiguousarray(case.label[box]),
        bbox=bbox,
        full_shape=case.image.shape[:3],
        spacing_mm=case.spacing_mm,
        kind=case.kind,
        note="; ".join(filter(None, [_unmasked_note(named(unmasked)), _flat_note(named(flat))])),
    )


def crop_and_zscore(image: np.ndarray) -> tuple[np.ndarray, BBox, list[int]]:
    """Crop of an image (z, y, x, c), z-scored; its box; and the channels not masked.

    Raises ValueError if the image is zero everywhere.
    """
    within, unmasked = inside(image)
    bbox = crop_to_inside(within, margin=PARAMETERS["margin"])
    box = tuple(slice(*bounds) for bounds in bbox)
    return zscore(image[box], within[box]), bbox, unmasked


def _unmasked_note(names: Sequence[str]) -> str:
    if not names:
        return ""
    return (
        f"{', '.join(names)}: not masked, the edges of the volume are not 0; nothing is cropped, "
        "and mean and sd are those of the whole volume with its background (skull-stripped images "
        "are expected here, 0 outside the brain)"
    )


def _flat_note(names: Sequence[str]) -> str:
    return f"{', '.join(names)}: has one value only, which says nothing; it is 0" if names else ""


def _check_finite(image: np.ndarray) -> None:
    if bad := image.size - int(np.isfinite(image).sum()):
        raise ValueError(f"{bad} of the image's {image.size} voxels are NaN or infinite")


STATISTICS = {"slice": (1, 2), "volume": (0, 1, 2)}  # over which axes mean and sd are taken


def slices(case: Case, size: Sequence[int], *, statistics: str = "slice") -> Prepared:
    """Z-scores over all pixels and resizes every slice to one size; with or without a label.

    Args:
      case: any.
      size: (y, x) of the result.
      statistics: mean and sd of each "slice" or of the whole "volume", for each channel. Slices
        that are constant become 0.

    Raises ValueError if the image holds NaN or infinity.
    """
    axes = STATISTICS[statistics]
    _check_finite(case.image)
    image = case.image.astype(np.float64)
    mean, deviation = image.mean(axes, keepdims=True), image.std(axes, keepdims=True)
    # Relative: the sd of equal float values is rounding noise, not zero.
    varies = deviation > 1e-6 * np.abs(image).max(axes, keepdims=True)
    image = np.where(varies, (image - mean) / np.where(varies, deviation, 1), 0)
    full_shape = case.image.shape[:3]
    return Prepared(
        image=resample.resize(image.astype(np.float32), size),
        label=None if case.label is None else resample.resize_label(case.label, size),
        bbox=tuple((0, length) for length in full_shape),
        full_shape=full_shape,
        spacing_mm=case.spacing_mm,
        kind=case.kind,
    )


def uncrop(label_crop: np.ndarray, bbox: BBox, full_shape: tuple[int, int, int]) -> np.ndarray:
    """Puts a cropped label (z, y, x) back into a full volume of background."""
    expected = tuple(stop - start for start, stop in bbox)
    if label_crop.shape != expected:
        raise ValueError(f"the crop has shape {label_crop.shape}, its box {expected}")
    full = np.zeros(full_shape, label_crop.dtype)
    full[tuple(slice(*bounds) for bounds in bbox)] = label_crop
    return full
