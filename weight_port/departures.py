"""Departures of a file's certificate, measured anew, from the one that it holds."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from weight_port.forward import NOT_RUN, TOLERANCE
from weight_port.volume import FROM_SOURCE

# What may differ between two certificates of the same file: they are from two places and times.
CIRCUMSTANCES = (
    *("date", "versions", "problems", "reason", "reference", "of"),
    *("limits", "limit"),  # measured, and only as good as the arithmetic
    *("used", "unused"),  # a 2D weight file, as a source, has other tensors than a checkpoint
)
_AGAINST_2D = re.compile(r"^volume\.stages\[\d+\]\.(edge|zero\w*|activations\.2d\.\w+)$")
_TIMM = re.compile(r"^timm\.(?:features\[(\d+)\]|logits)$")
_ERROR = re.compile(r"^volume\.stages\[(\d+)\]\.(?:own|edge|zero\w*)$")
_MOMENT = re.compile(
    r"^(?:(volume)\.stages|activations)\[(\d+)\](?:\.activations)?\.(\w+)\.(mean|variance)$"
)
_MAYBE_UNKNOWN = ("source_sha256", "source_content_sha256")  # None: a source without, or no source
RELATIVE = 0.05  # of measured departures, which hang on rounding in other machines' arithmetic


def departures(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Disagreements of two certificates of one file, as sentences; parts that one lacks are left.

    Errors below the tolerance are rounding and equal; measured departures and moments may differ by
    a few per cent between machines; hashes, names and counts must be the same. What was compared
    with the source is not held against what was compared with the kernels' own sums: running
    statistics may differ.
    """
    then_leaves, now_leaves = dict(_leaves(stored)), dict(_leaves(now))
    volumes = [certificate.get("volume", {}) for certificate in (stored, now)]
    if len({str(v.get("reference")).startswith(FROM_SOURCE) for v in volumes}) > 1:
        then_leaves = {k: v for k, v in then_leaves.items() if not _AGAINST_2D.search(k)}
    found = []
    for place in sorted(then_leaves.keys() & now_leaves.keys()):
        then, this = then_leaves[place], now_leaves[place]
        if then is None or this is None:
            same = then == this or place in _MAYBE_UNKNOWN
        else:
            same = _same(then, this, _rounding(stored, place))
        if not same:
            found.append(f"{place}: certified {_show(then)}, found {_show(this)}")
    return found


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (place, value); a list of names is one value, and parts that were not run have none.

    "volume.stages[2].edge" is a place.
    """
    if isinstance(tree, Mapping):
        if tree.get("status") == NOT_RUN:
            return
        for key, value in tree.items():
            if key not in CIRCUMSTANCES:
                yield from _leaves(value, f"{place}.{key}" if place else key)
    elif isinstance(tree, list) and not all(isinstance(item, str) for item in tree):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{place}[{index}]")
    else:
        yield place, tree


def _rounding(certificate: Mapping[str, Any], place: str) -> float:
    """By how much the number at that place may differ, however small it is itself.

    Relative errors: by the error up to which their feature is called equal. Moments, which are in
    the feature's own unit: by what such an error makes of them. Anything else: not at all.
    """
    if match := _TIMM.match(place):
        return _limit(certificate, int(match[1] or -1))
    if match := _ERROR.match(place):
        return _limit(certificate, int(match[1]), in_volume=True)
    if match := _MOMENT.match(place):
        volume, index, network, which = match[1], int(match[2]), match[3], match[4]
        if volume:
            moments = certificate["volume"]["stages"][index]["activations"][network]
        else:
            moments = certificate["activations"][index][network]
        variance = moments.get("variance") or 0.0
        limit = _limit(certificate, index, in_volume=bool(volume))
        return limit * (2 * variance if which == "variance" else math.sqrt(variance))
    return 0.0


def _limit(certificate: Mapping[str, Any], index: int, *, in_volume: bool = False) -> float:
    """Up to which relative error a feature (-1: the last, or the logits) is called equal."""
    if in_volume:
        return certificate["volume"]["stages"][index].get("limit", TOLERANCE)
    limits = certificate.get("timm", {}).get("limits")
    return limits[index] if limits else TOLERANCE


def _same(then: Any, now: Any, rounding: float) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (then, now))
    if numbers and (isinstance(then, float) or isinstance(now, float)):
        return math.isclose(then, now, rel_tol=RELATIVE, abs_tol=rounding)
    return then == now


def _show(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
