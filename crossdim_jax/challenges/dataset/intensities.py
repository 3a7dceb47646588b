"""Normalisation of one channel by a scheme of nnU-Net's names."""

from collections.abc import Callable, Mapping

import numpy as np

STATISTICS = ("mean", "sd", "percentile_00_5", "percentile_99_5")
_SMALL = 1e-8  # sd or maximum that is taken for none


def normalise(
    volume: np.ndarray,
    inside: np.ndarray,
    scheme: str,
    statistics: Mapping[str, float] | None,
) -> tuple[np.ndarray, str]:
    """One channel normalised, (z, y, x) float32, and a note; "" for nothing.

    Args:
      volume: (z, y, x).
      inside: bool, of the same shape: what is not the blank outside of a masked image. Only
        "zscore" uses it, and sets what is outside to 0.
      scheme: a key of `SCHEMES`.
      statistics: `STATISTICS` of the data set's foreground, for "ct"; None takes those of the
        image.
    """
    return SCHEMES[scheme](volume.astype(np.float64), inside, statistics)


def _ct(volume, inside, statistics):
    del inside
    note = ""
    if statistics is None:
        low, high = np.percentile(volume, (0.5, 99.5))
        clipped = volume.clip(low, high)
        mean, sd = clipped.mean(), clipped.std()
        note = (
            "CT without statistics of the data set: clipped to the image's own 0.5 and 99.5 "
            "percentiles, mean and sd are the image's"
        )
    else:
        mean, sd, low, high = (float(statistics[name]) for name in STATISTICS)
        clipped = volume.clip(low, high)
    return ((clipped - mean) / max(sd, _SMALL)).astype(np.float32), note


def _zscore(volume, inside, statistics):
    del statistics
    values, result = volume[inside], np.zeros(volume.shape, np.float32)
    # Relative: the sd of equal float values is rounding noise, not zero.
    if not values.size or (sd := values.std()) <= 1e-6 * np.abs(values).max():
        return result, "has one value only, which says nothing; it is 0"
    result[inside] = (values - values.mean()) / sd
    return result, ""


def _nothing(volume, inside, statistics):
    del inside, statistics
    return volume.astype(np.float32), ""


def _rescale(volume, inside, statistics):
    del inside, statistics
    shifted = volume - volume.min()
    return (shifted / max(shifted.max(), _SMALL)).astype(np.float32), ""


def _rgb(volume, inside, statistics):
    del inside, statistics
    if volume.min() < 0 or volume.max() > 255:
        raise ValueError(
            f"colours run from {volume.min():g} to {volume.max():g}; rgb_to_0_1 expects 0 to 255"
        )
    return (volume / 255).astype(np.float32), ""


SCHEMES: dict[str, Callable] = {
    "ct": _ct,
    "zscore": _zscore,
    "nonorm": _nothing,
    "rescale_to_0_1": _rescale,
    "rgb_to_0_1": _rgb,
}
