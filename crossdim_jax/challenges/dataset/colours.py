"""Colours of labels: those that dataset.json gives, the others spread over the hues."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax.challenges.dataset.labels import Faults, Labels

_HEX = re.compile(r"#[0-9a-fA-F]{6}")
# For few labels, told apart also with a weak sense of colours (Okabe and Ito 2008).
_FEW = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
_GOLDEN = 0.6180339887498949  # of the hues: neighbours in number are far apart in colour


def parse(record: Mapping[str, Any], labels: Labels | None, faults: Faults) -> dict[str, str]:
    """The key `colours` (or `colors`): {label: "#rrggbb" or [red, green, blue] of 0 to 255}."""
    field = "colours" if "colours" in record else "colors"
    given = record.get(field)
    if given is None:
        return {}
    if not isinstance(given, dict):
        faults.append((field, 'expected an object such as {"liver": "#e8352e"}'))
        return {}
    result = {}
    for name, value in given.items():
        if labels is not None and name not in (*labels.names, "background", "ignore"):
            faults.append((f"{field}.{name}", f"is no label; there are {', '.join(labels.names)}"))
        elif isinstance(value, str) and _HEX.fullmatch(value):
            result[name] = value.lower()
        elif isinstance(value, list) and len(value) == 3 and all(map(_is_byte, value)):
            result[name] = "#" + "".join(f"{part:02x}" for part in value)
        else:
            faults.append(
                (f"{field}.{name}", 'expected "#rrggbb" or three whole numbers from 0 to 255')
            )
    return result


def _is_byte(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def of(names: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    """The colour of each name: as given, else one that is far from its neighbours'."""
    spread = _FEW if len(names) <= len(_FEW) else [_hue(i) for i in range(len(names))]
    return {name: given.get(name, spread[i]) for i, name in enumerate(names)}


def _hue(number: int) -> str:
    red, green, blue = colorsys.hsv_to_rgb(
        number * _GOLDEN % 1, (0.9, 0.65, 0.8)[number % 3], (1.0, 0.95, 0.75)[number // 3 % 3]
    )
    return "#" + "".join(f"{round(255 * part):02x}" for part in (red, green, blue))
