"""Volumes of the left ventricle by Simpson's biplane method of disks, and their agreement.

The ventricle is cut into 20 disks across its long axis, which is found in each of two apical views;
a disk is an ellipse whose two diameters come from the two views. Two ways are in use, see
`METHODS`. Masks are 2-D, (row, column), the base of the ventricle below its apex.

Source: the evaluation script published with the CAMUS challenge (Leclerc et al. 2019).
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import contourpy
import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

DISKS = 20
BASE_PX = 8.0  # the outline between the ends of the base lies within this of the base
STEP_PX = 0.5
VIEWS = ("2CH", "4CH")
PHASES = ("ED", "ES")
METHODS = {
    "camus_official": "disks of one height for both phases, the largest of all four images; "
    "volumes rounded to mL, and EF, from these, to per cent: as the challenge's own script",
    "textbook": "disks of each phase's own height (the larger of the two views'); nothing rounded",
}


class NoBase(ValueError):
    """Raised for a mask in which no long axis can be found."""


@dataclasses.dataclass(frozen=True)
class Disks:
    """Disks of one view of a ventricle, from the base to the apex.

    Attributes:
      diameters_mm: (20,).
      length_mm: of the long axis.
      axis_px: ((row, column) of the middle of the base, of the apex) in pixels of equal sides,
        `pixel_mm` wide.
      pixel_mm: the smaller side of the image's own pixels.
    """

    diameters_mm: np.ndarray
    length_mm: float
    axis_px: np.ndarray
    pixel_mm: float


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Volumes of one patient; NaN where unknown.

    Attributes:
      edv_ml, esv_ml: at the end of diastole and of systole.
      ef_percent: ejection fraction, 100 (EDV - ESV) / EDV.
    """

    edv_ml: float
    esv_ml: float
    ef_percent: float


UNKNOWN = Volumes(math.nan, math.nan, math.nan)


def disks(mask: np.ndarray, spacing_mm: Sequence[float]) -> Disks:
    """Finds the long axis of a ventricle's cavity and its 20 diameters.

    The mask is resized (nearest) to pixels of equal sides. Base: the longest chord of its first
    outline, within 45 degrees of horizontal, from which no point of the outline between its ends is
    farther than 8 pixels. The long axis goes from the middle of that stretch of the outline to the
    point of the outline that is farthest from it. Diameters lie across the axis at 0, 1/20, ...,
    19/20 of its length; each is followed from 8 pixels on both sides, in steps of half a pixel,
    until the background.

    Args:
      mask: (y, x) boolean.
      spacing_mm: (y, x).

    Raises:
      NoBase: the mask is empty, or has no chord that could be a base.
    """
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"expected a 2-D boolean mask, found {mask.dtype} {mask.shape}")
    mask, pixel_mm = _isotropic(mask, spacing_mm)
    lines = outlines(mask)
    if not lines:
        raise NoBase("the mask is empty" if not mask.any() else "the mask fills the image")
    outline = lines[0]
    j, i = _base(outline)
    middle = outline[int(j + round((i - j) / 2))]
    apex = outline[np.argmax(np.hypot(*(outline - middle).T))]
    axis = apex - middle
    length = float(np.hypot(*axis))
    across = np.array([-axis[1], axis[0]]) / length
    points = middle + axis * (np.arange(DISKS) / DISKS)[:, None]
    radii = _to_background(mask, points, across) + _to_background(mask, points, -across)
    return Disks(radii * pixel_mm, length * pixel_mm, np.stack([middle, apex]), pixel_mm)


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Outlines of a mask at level 0.5, each (n, 2) as (row, column), the topmost first.

    Halfway between pixels; pixels that meet in a corner only are apart. A closed outline starts and
    ends at its highest point, of several the leftmost: an outline that started within the base of a
    ventricle would split it in two. One that meets the image's edge is open.
    """
    if min(mask.shape) < 2:
        return []
    # A saddle of a mask is 0.5 in the middle, which is not above the level.
    generator = contourpy.contour_generator(
        z=mask.astype(float), name="serial", line_type=contourpy.LineType.Separate
    )
    lines = [line[:, ::-1] for line in generator.lines(0.5)]
    for number, line in enumerate(lines):
        if np.array_equal(line[0], line[-1]):
            start = min(range(len(line) - 1), key=lambda k, line=line: tuple(line[k]))
            lines[number] = np.concatenate([line[start:-1], line[: start + 1]])
    return sorted(lines, key=lambda line: tuple(line.min(0)))


def _isotropic(mask: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, float]:
    side = min(spacing_mm)
    if not side > 0:
        raise ValueError(f"spacing_mm is {tuple(spacing_mm)}; expected (y, x), each positive")
    rows, columns = (
        round(n * length / side) for n, length in zip(mask.shape, spacing_mm, strict=True)
    )
    if (rows, columns) == mask.shape:
        return mask, float(side)
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.resize((columns, rows), Image.Resampling.NEAREST)) > 0, float(side)


def _base(outline: np.ndarray) -> tuple[int, int]:
    """Indices j < i of the ends of the base."""
    j, i = np.triu_indices(len(outline), 1)
    chord = outline[i] - outline[j]
    keep = (np.abs(chord[:, 0]) <= np.abs(chord[:, 1])) & (chord[:, 1] != 0)
    j, i, chord = j[keep], i[keep], chord[keep]
    # A few points between the ends rule out nearly all pairs, before all points are looked at.
    for part in (0.5, 0.25, 0.75, 0.125, 0.875):
        between = outline[j + ((i - j) * part).astype(int)] - outline[j]
        near = _distance(between, chord) <= BASE_PX
        j, i, chord = j[near], i[near], chord[near]
    for pair in np.argsort(-np.hypot(*chord.T), kind="stable"):
        between = outline[j[pair] + 1 : i[pair]] - outline[j[pair]]
        if (_distance(between, chord[pair]) <= BASE_PX).all():
            return int(j[pair]), int(i[pair])
    raise NoBase("no chord of its outline could be the base")


def _distance(point: np.ndarray, chord: np.ndarray) -> np.ndarray:
    """Distance of a point, relative to one end of the chord, from the line through the chord."""
    twice_area = chord[..., 0] * point[..., 1] - chord[..., 1] * point[..., 0]
    return np.abs(twice_area) / np.hypot(chord[..., 0], chord[..., 1])


def _to_background(mask: np.ndarray, points: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Distance (n,) in px from each point to the first step outside the mask, 8 px at least."""
    steps = np.arange(BASE_PX, max(BASE_PX, np.hypot(*mask.shape)) + 2, STEP_PX)
    at = np.round(points[:, None] + steps[:, None] * direction).astype(int)
    padded = np.pad(mask, 1)  # beyond the image is background
    row, column = (np.clip(at[..., k] + 1, 0, padded.shape[k] - 1) for k in (0, 1))
    return steps[np.argmin(padded[row, column], axis=1)]


def biplane(
    masks: Mapping[str, tuple[np.ndarray, Sequence[float]]], name: str = ""
) -> tuple[dict[str, Volumes], str]:
    """Volumes of one patient from two views at two times, by every one of `METHODS`.

    Args:
      masks: {"2CH_ED": (mask (y, x) bool, spacing_mm (y, x)), "2CH_ES": ..., "4CH_ED", "4CH_ES"},
        of the left ventricle's cavity.
      name: of the patient, for the warning.

    Returns:
      {method: volumes}, and why they are not known, "" if they are.
    """
    found: dict[str, Disks] = {}
    wrong = []
    for image in (f"{view}_{phase}" for phase in PHASES for view in VIEWS):
        try:
            found[image] = disks(*masks[image])
        except KeyError:
            wrong.append(f"{image} is not there")
        except NoBase as error:
            wrong.append(f"{image}: {error}")
    if wrong:
        why = "; ".join(wrong)
        logger.warning("%s: no volumes: %s", name or "a patient", why)
        return dict.fromkeys(METHODS, UNKNOWN), why
    common = max(view.length_mm for view in found.values()) / DISKS
    textbook, official = [], []
    for phase in PHASES:
        pair = [found[f"{view}_{phase}"] for view in VIEWS]
        own = max(view.length_mm for view in pair) / DISKS
        products = float((pair[0].diameters_mm * pair[1].diameters_mm).sum())
        textbook.append(math.pi / 4 * own * products / 1000)
        official.append(float(round(math.pi / 4 * common * products / 1000)))
    return {
        "camus_official": _volumes(*official, rounded=True),
        "textbook": _volumes(*textbook, rounded=False),
    }, ""


def _volumes(edv_ml: float, esv_ml: float, *, rounded: bool) -> Volumes:
    ef = 100 * (edv_ml - esv_ml) / edv_ml if edv_ml else math.nan
    return Volumes(edv_ml, esv_ml, float(round(ef)) if rounded and not math.isnan(ef) else ef)


def agreement(reference: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Agreement of two measurements of the same patients.

    Returns {"n", "n_nan", "r", "bias", "sd", "mae", "low", "high"}: pairs with a NaN are left out
    and counted in `n_nan`; r is Pearson's correlation; the differences are measured - reference, sd
    with n - 1; low and high are Bland and Altman's limits of agreement, bias -+ 1.96 sd. What needs
    more pairs, or values that differ, is NaN.
    """
    pair = np.array([reference, measured], np.float64).reshape(2, -1)
    known = pair[:, ~np.isnan(pair).any(0)]
    n = known.shape[1]
    difference = known[1] - known[0]
    nan = math.nan
    bias = float(difference.mean()) if n else nan
    sd = float(difference.std(ddof=1)) if n > 1 else nan
    varies = n > 1 and (np.ptp(known, axis=1) > 0).all()
    return {
        "n": n,
        "n_nan": pair.shape[1] - n,
        "r": float(np.corrcoef(known)[0, 1]) if varies else nan,
        "bias": bias,
        "sd": sd,
        "mae": float(np.abs(difference).mean()) if n else nan,
        "low": bias - 1.96 * sd,
        "high": bias + 1.96 * sd,
    }
