"""The labels of a data set: what the values of a label file mean, and what a network predicts.

Disjoint labels are predicted under a softmax that includes the background. Regions overlap, each a
set of values, and are predicted by sigmoids of their own; the value that a predicted voxel gets is
that of the last region above 0.5 in their order (`regions_class_order` of nnU-Net).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

BACKGROUND, IGNORE = "background", "ignore"
HIGHEST = 65535  # uint16
_LONGEST = 200  # characters of a name

Faults = list[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Meaning of label values.

    Attributes:
      names: of the foreground labels or regions, in order.
      values: the label values of each.
      written: the value that a predicted voxel of each gets.
      regions: True if they overlap.
      ignore: the value of voxels that nobody annotated; None if there is none.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    written: tuple[int, ...]
    regions: bool = False
    ignore: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that a network predicts, in order."""
        return self.names if self.regions else (BACKGROUND, *self.names)

    @functools.cached_property
    def allowed(self) -> tuple[int, ...]:
        """Values that a label file may hold, sorted."""
        found = {0, *(value for values in self.values for value in values)}
        return tuple(sorted(found if self.ignore is None else found | {self.ignore}))

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned type that holds every value."""
        return np.min_scalar_type(max(self.allowed))

    @property
    def consecutive(self) -> bool:
        """True if the values are 0, 1, 2, ... without a gap."""
        return self.allowed == tuple(range(len(self.allowed)))

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """(values, k) uint8, or int8 with -1 for the ignored value: the targets of each value."""
        table = np.zeros((max(self.allowed) + 1, len(self.classes)), np.uint8)
        first = 0 if self.regions else 1
        for index, values in enumerate(self.values, first):
            table[list(values), index] = 1
        if not self.regions:
            table[0, 0] = 1
        if self.ignore is not None:
            table = table.astype(np.int8)
            table[self.ignore] = -1
        return table

    def encode(self, label: np.ndarray) -> np.ndarray:
        """Label values (...) -> targets (..., k) uint8; int8, -1 where ignored, with such a label.

        The type depends on the data set alone, not on what this label holds.
        """
        return self._table[label]

    def masks(self, label: np.ndarray) -> np.ndarray:
        """Label values (...) -> (..., r) bool, one channel for each name."""
        return self._table[label][..., 0 if self.regions else 1 :] > 0

    def known(self, label: np.ndarray) -> np.ndarray | None:
        """True where a label is annotated, (...) bool; None if all of it is by definition."""
        return None if self.ignore is None else label != self.ignore

    def decode(self, probabilities: np.ndarray) -> np.ndarray:
        """Probabilities (..., k) -> label values (...) in the smallest type."""
        if not self.regions:
            return np.array((0, *self.written), self.dtype)[probabilities.argmax(-1)]
        label = np.zeros(probabilities.shape[:-1], self.dtype)
        for index, value in enumerate(self.written):
            label[probabilities[..., index] > 0.5] = value
        return label

    def unknown(self, label: np.ndarray) -> dict[int, int]:
        """{value: voxels} of values that mean nothing here."""
        counts = np.bincount(label.ravel(), minlength=1)
        allowed = set(self.allowed)
        return {int(v): int(counts[v]) for v in np.flatnonzero(counts) if int(v) not in allowed}

    def __str__(self) -> str:
        """In words: "0 background, 1 liver, 2 spleen"."""
        parts = ["0 background"]
        for name, values in zip(self.names, self.values, strict=True):
            parts.append(f"{'+'.join(map(str, values))} {name}")
        if self.ignore is not None:
            parts.append(f"{self.ignore} ignore")
        return ", ".join(parts)

    def __getstate__(self) -> dict[str, Any]:
        """The fields alone: a worker process makes the table itself."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)

    def record(self) -> dict[str, Any]:
        """The keys `labels` and `regions_class_order` of a dataset.json that says the same."""
        named: dict[str, Any] = {BACKGROUND: 0}
        for name, values in zip(self.names, self.values, strict=True):
            named[name] = list(values) if len(values) > 1 else values[0]
        if self.ignore is not None:
            named[IGNORE] = self.ignore
        return {"labels": named} | (
            {"regions_class_order": list(self.written)} if self.regions else {}
        )


def of_values(values: Sequence[int]) -> Labels:
    """Labels of which only the values are known: "label_1", "label_2", ..."""
    found = sorted(set(values) - {0})
    return Labels(
        tuple(f"label_{value}" for value in found), tuple((v,) for v in found), tuple(found)
    )


def parse(record: Mapping[str, Any], faults: Faults) -> Labels | None:
    """Labels of a dataset.json, in the direction of nnU-Net or of the decathlon.

    Args:
      record: the whole JSON object.
      faults: what is wrong is appended as (field, message).

    Returns None if anything is.
    """
    labels = record.get("labels")
    if not isinstance(labels, dict) or not labels:
        expected = 'expected an object such as {"background": 0, "liver": 1}'
        faults.append(("labels", f"is {_short(labels)}, {expected}" if labels else expected))
        return None
    before = len(faults)
    # The decathlon writes {"1": "liver"}, nnU-Net {"liver": 1}.
    if all(isinstance(name, str) for name in labels.values()):
        labels = _turned(labels, faults)
    values = {name: _values(name, value, faults) for name, value in labels.items()}
    faults.extend(_name_faults(values))
    if len(faults) > before:
        return None
    faults.extend(_background_faults(labels))
    ignore = values.pop(IGNORE, None)
    values.pop(BACKGROUND, None)
    if ignore is not None:
        faults.extend(_ignore_faults(labels[IGNORE], values))
    if not values:
        faults.append(("labels", "name nothing but the background; there is nothing to segment"))
    if len(faults) > before:
        return None
    regions = any(len(found) > 1 for found in values.values())
    faults.extend(_order_faults(record, values) if regions else _twice_faults(values))
    if len(faults) > before:
        return None
    written = record["regions_class_order"] if regions else [v[0] for v in values.values()]
    return Labels(
        tuple(values),
        tuple(values.values()),
        tuple(written),
        regions,
        None if ignore is None else ignore[0],
    )


def _turned(labels: Mapping[str, str], faults: Faults) -> dict[str, int]:
    """{"1": "liver"} -> {"liver": 1}; value 0 is the background, whatever it is called."""
    result: dict[str, int] = {}
    for value, name in labels.items():
        if not (value.isascii() and value.isdigit() and len(value) <= 5):
            faults.append((f"labels.{value}", f"expected a whole number from 0 to {HIGHEST}"))
            continue
        name = BACKGROUND if int(value) == 0 else name
        if name in result:
            both = f"{result[name]} and {int(value)}"
            faults.append(
                (f"labels.{value}", f"{name!r} is the name of {both}; each needs its own")
            )
        result[name] = int(value)
    return result


def _values(name: str, value: Any, faults: Faults) -> tuple[int, ...]:
    """The values of a label or region."""
    found = value if isinstance(value, list) else [value]
    if not found or not all(_is_value(item) for item in found):
        faults.append(
            (
                f"labels.{name}",
                f"is {_short(value)}, expected a whole number from 0 to {HIGHEST}, or a list of "
                "such numbers for a region",
            )
        )
        return ()
    return tuple(dict.fromkeys(found))


def _is_value(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= HIGHEST


def _name_faults(names: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in names:
        if not name.strip() or not name.isprintable() or len(name) > _LONGEST:
            yield (
                "labels",
                f"{name[:_LONGEST]!r} is no name; expected up to {_LONGEST} visible characters",
            )


def _background_faults(labels: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if BACKGROUND not in labels:
        alike = [name for name in labels if name.casefold() == BACKGROUND]
        hint = f"; {alike[0]!r} must be written in lower case" if alike else ""
        yield "labels", f'have no "background"{hint}; add "background": 0'
    elif isinstance(labels[BACKGROUND], list) or labels[BACKGROUND] != 0:
        yield "labels.background", f"is {_short(labels[BACKGROUND])}, expected 0"
    for name, value in labels.items():
        if name != BACKGROUND and 0 in (value if isinstance(value, list) else [value]):
            yield f"labels.{name}", "holds the value 0, which is the background's; remove it"


def _ignore_faults(ignore: Any, values: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    highest = max((value for found in values.values() for value in found), default=0)
    if isinstance(ignore, list):
        yield "labels.ignore", f"is {_short(ignore)}, expected one whole number"
    elif ignore <= highest:
        yield (
            "labels.ignore",
            f"is {ignore}, but a label has the value {highest}; expected the highest value of all, "
            f"{highest + 1}",
        )


def _twice_faults(values: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Labels that are no regions have a value each."""
    of: dict[int, str] = {}
    for name, (value,) in values.items():
        if value in of:
            yield (
                f"labels.{name}",
                f"has the value {value}, as {of[value]!r} has; each needs its own",
            )
        of.setdefault(value, name)


def _order_faults(
    record: Mapping[str, Any], values: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, str]]:
    field, order = "regions_class_order", record.get("regions_class_order")
    names = ", ".join(values)
    if not isinstance(order, list) or not all(_is_value(value) for value in order):
        found = f"is {_short(order)}" if field in record else "is missing"
        yield (
            field,
            f"{found}; labels that are lists are regions, which need an order: a list with one "
            f"value for each of {names}",
        )
    elif len(order) != len(values):
        yield field, f"has {len(order)} values, expected {len(values)}, one for each of {names}"
    else:
        for value, (name, own) in zip(order, values.items(), strict=True):
            if value not in own:
                yield (
                    field,
                    f"writes {value} for {name!r}, which is made of {', '.join(map(str, own))}; "
                    f"expected one of these (the order is that of the labels: {names})",
                )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
