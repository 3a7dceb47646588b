"""Normalisation of intensities, one channel at a time, by a scheme that nnU-Net's names choose.

Source: nnU-Net 2.8.1, preprocessing/normalization.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from crossdim_jax.errors import check_name

STATISTICS = ("mean", "sd", "percentile_00_5", "percentile_99_5")
_SMALL = 1e-8  # sd or range that is taken for none

Statistics = Mapping[str, float]


def scheme_of(channel: str) -> str:
    """Scheme of a channel by its name: "CT" is "ct", any name that is no scheme a z-score."""
    scheme = channel.casefold()
    return scheme if scheme in SCHEMES else "zscore"


def check_scheme(scheme: Any) -> str:
    """The scheme as `SCHEMES` spells it; raises ConfigError, listing them, if there is no such."""
    found = scheme.casefold() if isinstance(scheme, str) else scheme  # nnU-Net writes noNorm
    check_name("normalisation", found, SCHEMES)
    return found


def normalise(
    volume: np.ndarray, inside: np.ndarray, scheme: str, statistics: Statistics | None = None
) -> tuple[np.ndarray, str]:
    """One channel normalised, (z, y, x) float32, and a note for the user; "" for none.

    Args:
      volume: (z, y, x), finite.
      inside: bool, of the same shape: what is not the blank outside of a masked image, see
        `preprocess.inside`. Only "zscore" uses it, and sets what is outside to 0.
      scheme: a key of `SCHEMES`.
      statistics: `STATISTICS` of the data set's foreground, for "ct"; None takes those of the
        image.

    Raises ValueError if values do not fit the scheme.
    """
    return SCHEMES[scheme](np.asarray(volume, np.float64), inside, statistics)


def _ct(volume, inside, statistics):
    """Clip to the 0.5 and 99.5 percentiles of the foreground, subtract its mean, divide by sd."""
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
    """Mean 0 and sd 1 over the inside."""
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
    """From 0 to 1 over the image."""
    del inside, statistics
    shifted = volume - volume.min()
    return (shifted / max(shifted.max(), _SMALL)).astype(np.float32), ""


def _rgb(volume, inside, statistics):
    """From 0..255 to 0..1."""
    del inside, statistics
    if volume.min() < 0 or volume.max() > 255:
        raise ValueError(
            f"colours run from {volume.min():g} to {volume.max():g}; rgb_to_0_1 expects 0 to 255"
        )
    return (volume / 255).astype(np.float32), ""


SCHEMES: dict[str, Callable[..., tuple[np.ndarray, str]]] = {
    "ct": _ct,
    "zscore": _zscore,
    "nonorm": _nothing,
    "rescale_to_0_1": _rescale,
    "rgb_to_0_1": _rgb,
}
