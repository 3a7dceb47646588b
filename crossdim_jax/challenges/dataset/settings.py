"""Checks of the settings of a data set, and what they come to."""

import re
from collections.abc import Mapping, Sequence

from crossdim_jax.challenges.dataset.description import Channel
from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging import analyze, normalise


def slice_size(size: Sequence[int] | None) -> tuple[int, int] | None:
    """Size (y, x) of every slice. Raises ConfigError if it is none."""
    if size is None:
        return None
    if len(size) != 2 or min(size) < 1:
        raise ConfigError(f"size is {tuple(size)}; expected (y, x), each at least 1")
    return int(size[0]), int(size[1])


def check_flag(name: str, value: object) -> None:
    """Raises ConfigError unless a value is True or False."""
    if not isinstance(value, bool):  # of "False", bool() makes True
        raise ConfigError(f"{name} is {value!r}; expected True or False")


def axes(given: str) -> str | None:
    """Order of the axes of Analyze files; None where "" is given. Raises ConfigError."""
    if given and not (isinstance(given, str) and analyze.is_order(given)):
        raise ConfigError(
            f"analyze_axes is {given!r}; expected the directions in which the three axes of a file "
            "grow, such as 'LAS' (left, anterior, superior), or ''"
        )
    return given or None


def check_pattern(pattern: str) -> None:
    """Raises ConfigError unless a pattern compiles and has a group, or is empty."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(f"patient is {pattern!r}, which is no pattern ({error})") from error
    if pattern and not groups:
        raise ConfigError(
            f"patient is {pattern!r}; expected a group for the patient's name, such as "
            "'(sub-[0-9]+)_.*'"
        )


def profile(tolerance_mm: float) -> str:
    """Name of the metrics at that tolerance. Raises ConfigError if it is out of range."""
    if isinstance(tolerance_mm, bool) or not 0.001 <= tolerance_mm <= 1000:
        raise ConfigError(f"tolerance_mm is {tolerance_mm!r}; expected 0.001 to 1000 mm")
    return f"segmentation_{float(tolerance_mm):.6f}".rstrip("0").rstrip(".") + "mm"


def schemes(given: Sequence[str] | str | None, channels: Sequence[Channel]) -> tuple[str, ...]:
    """The scheme of each channel. Raises ConfigError if one is unknown or their number is wrong."""
    if given is None:
        return tuple(channel.normalisation for channel in channels)
    found = (given,) * len(channels) if isinstance(given, str) else tuple(given)
    if len(found) != len(channels):
        raise ConfigError(
            f"normalisation has {len(found)} schemes; expected {len(channels)}, one for each of "
            + ", ".join(channel.name for channel in channels)
        )
    return tuple(map(normalise.check_scheme, found))


def statistics(
    given: Mapping[str, Mapping[str, float]] | None, names: Sequence[str]
) -> tuple[Mapping[str, float] | None, ...]:
    """Statistics of each channel, None where they are not given."""
    if given is None:
        return (None,) * len(names)
    found = []
    for number, name in enumerate(names):
        one = given.get(str(number), given.get(name))
        if one is not None and (lacking := set(normalise.STATISTICS) - set(one)):
            raise ConfigError(
                f"intensities of channel {number} ({name}) lack {', '.join(sorted(lacking))}"
            )
        found.append(None if one is None else {n: float(one[n]) for n in normalise.STATISTICS})
    return tuple(found)


def spacing(spacing_mm: Sequence[float] | None, size: object) -> tuple[float, ...] | None:
    """Target spacing (z, y, x). Raises ConfigError if it is none, or slices have one size."""
    if spacing_mm is None:
        return None
    values = tuple(spacing_mm) if isinstance(spacing_mm, list | tuple) else ()
    good = [isinstance(v, int | float) and 1e-3 <= v <= 1e3 for v in values]
    if len(values) != 3 or not all(good):
        raise ConfigError(
            f"challenge.spacing_mm is {spacing_mm!r}; expected three lengths (z, y, x) in mm, from "
            "0.001 to 1000, or None"
        )
    if size is not None:
        raise ConfigError(
            f"challenge.spacing_mm is {spacing_mm!r}, but a 2D network gets every slice in the "
            "size of data.patch; expected None"
        )
    return tuple(float(v) for v in values)
