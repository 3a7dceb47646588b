"""Metrics of segmentations, on numpy and scipy alone, as named profiles.

A profile is one challenge's official definition, complete: the published packages disagree with
the official code and with one another. `overlap` and `surface` hold the parts, `brats`, `camus`,
`chaos` and `segmentation` (any data set) the rows, `aggregate` makes the table. Nothing here knows
about files, labels or models.

A metric is one row, see `Metric`: in a profile's own table, or in `profile.COMMON` for all of them.
"""

import re

from crossdim_jax.metrics import brats, camus, chaos, segmentation
from crossdim_jax.metrics.aggregate import MODES, aggregate
from crossdim_jax.metrics.profile import MaskPair, Metric, Profile


class _Profiles(dict[str, Profile]):
    """Profiles by name; "segmentation_TOLERANCEmm" for any tolerance, such as 3 or 0.5."""

    def __missing__(self, name: str) -> Profile:
        match = re.fullmatch(r"segmentation_(\d+(?:\.\d+)?)mm", name)
        if match is None:
            raise KeyError(name)
        return Profile(name, segmentation.metrics(float(match[1])))


PROFILES = _Profiles(
    (profile.name, profile)
    for profile in (
        Profile("brats2022", brats.METRICS),
        Profile("camus", camus.metrics("pooled"), per_frame=True),
        Profile("camus_masd", camus.metrics("masd"), per_frame=True),
        Profile("chaos", chaos.METRICS),
        Profile("segmentation_2mm", segmentation.metrics(2.0)),
    )
)


def find(name: str) -> Metric | None:
    """Metric of a name, to print its values; None if no profile has it.

    Metrics of one name are printed alike in all profiles; their definitions may differ.
    """
    rows = (metric for profile in PROFILES.values() for metric in profile.metrics)
    return next((metric for metric in rows if metric.name == name), None)


__all__ = ["MODES", "PROFILES", "MaskPair", "Metric", "Profile", "aggregate", "find"]
