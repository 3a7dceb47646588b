"""Postprocessing found on held-out cases: of which structures only the largest component is kept.

The rule is nnU-Net's (postprocessing/remove_connected_components.py, version 2.8.1). First the
whole foreground: only its largest component is kept if the mean Dice over the structures rises and
that of no structure falls. Then each structure by itself, in their order, if its own mean Dice
rises. Means are over the cases in which a structure is in truth or prediction.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from crossdim_jax.errors import DataError
from crossdim_jax.storage import records

FOREGROUND = "foreground"
_REMEDY = "find the rules anew from the predictions of the held-out cases"

# Calls of it go through all held-out cases: (predicted label, true label), (z, y, x) each.
Cases = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Keep the largest component of a structure.

    Attributes:
      name: of the structure, or `FOREGROUND`.
      values: the label values that it consists of.
      before, after: mean Dice on the held-out cases, of the structure or over all structures.
    """

    name: str
    values: tuple[int, ...]
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.name}: largest component only, Dice {self.before:.4f} -> {self.after:.4f}"


def keep_largest(label: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Label (z, y, x) in which `values` outside of their largest component are background.

    Voxels that touch by a corner are connected; of equally large components all are kept.
    """
    mask = np.isin(label, values)
    if not mask.any():
        return label
    box = ndimage.find_objects(mask, max_label=1)[0]  # many structures are small in a large volume
    components, count = ndimage.label(mask[box], np.ones((3,) * label.ndim))
    if count < 2:
        return label
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    result = label.copy()
    result[box][mask[box] & (sizes[components] < sizes.max())] = 0
    return result


def apply(label: np.ndarray, rules: Iterable[Rule]) -> np.ndarray:
    """Label after all rules, in their order."""
    for rule in rules:
        label = keep_largest(label, rule.values)
    return label


def find(
    cases: Cases, structures: Mapping[str, Sequence[int]], ignore: int | None = None
) -> tuple[Rule, ...]:
    """Rules that held-out cases support; none of them may have been trained on.

    Args:
      cases: see `Cases`; they are gone through three times, and once more for each structure that
        shares values with one before it.
      structures: {name: its label values}, in the order in which predictions are written. They may
        overlap.
      ignore: label value of voxels that nobody annotated, which do not count; None: there is none.
    """
    everything = tuple(sorted({value for values in structures.values() for value in values}))
    before = _dice(cases, structures, [], ignore)
    after = _dice(cases, structures, [Rule(FOREGROUND, everything, 0.0, 0.0)], ignore)
    old, new = _mean(list(before.values())), _mean(list(after.values()))
    falls = any(after[name] < before[name] for name in structures)
    rules = [Rule(FOREGROUND, everything, old, new)] if new > old and not falls else []
    for group in _disjoint(structures) if len(structures) > 1 else []:
        own = {name: tuple(structures[name]) for name in group}
        before, after = (_dice(cases, own, rules, ignore, each=each) for each in (False, True))
        rules += [
            Rule(name, values, before[name], after[name])
            for name, values in own.items()
            if after[name] > before[name]
        ]
    return tuple(rules)


def _disjoint(structures: Mapping[str, Sequence[int]]) -> list[list[str]]:
    """Names in their order, in runs that share no value: a rule of one changes no other of it."""
    runs: list[list[str]] = []
    seen: set[int] = set()
    for name, values in structures.items():
        if not runs or seen & set(values):
            runs.append([])
            seen = set()
        runs[-1].append(name)
        seen |= set(values)
    return runs


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def _dice(
    cases: Cases,
    structures: Mapping[str, Sequence[int]],
    rules: Sequence[Rule],
    ignore: int | None,
    *,
    each: bool = False,
) -> dict[str, float]:
    """Mean Dice of each structure after some rules; NaN if it is in no case.

    each: True keeps of each structure, by itself, the largest component only.
    """
    rows: dict[str, list[float]] = {name: [] for name in structures}
    for predicted, truth in cases():
        processed = apply(predicted, rules)
        for name, values in structures.items():
            ours, theirs = np.isin(processed, values), np.isin(truth, values)
            kept = keep_largest(ours.view(np.uint8), (1,)) > 0 if each else ours
            if ignore is not None:  # after the components, which it may connect
                known = truth != ignore
                ours, kept = ours & known, kept & known
            if ours.any() or theirs.any():
                total = np.count_nonzero(kept) + np.count_nonzero(theirs)
                hit = np.count_nonzero(kept & theirs)
                rows[name].append(2 * hit / total if total else 0.0)
    return {name: _mean(row) for name, row in rows.items()}


def record(rules: Sequence[Rule]) -> dict[str, Any]:
    """JSON object of the rules, for `of_record`."""
    return {"keep_largest": [dataclasses.asdict(rule) for rule in rules]}


_RULE = {
    "name": records.TEXT,
    "values": records.Form(
        "a list of label values",
        lambda v: isinstance(v, list) and len(v) > 0 and all(map(records.is_count, v)),
    ),
    "before": records.NUMBER,
    "after": records.NUMBER,
}
_RULES = records.Form(
    "a list of rules, each an object",
    lambda v: isinstance(v, list) and all(isinstance(rule, dict) for rule in v),
)


def read(path: Path) -> tuple[Rule, ...]:
    """Rules that a file holds. Raises DataError, naming it, if it is missing or damaged."""
    if not os.path.lexists(path):
        raise DataError(
            f"{path}: not found; --mode=evaluate with --config.inference.keep_largest=True finds "
            "the rules and writes it"
        )
    return of_record(records.read_record(path, remedy=_REMEDY), str(path))


def of_record(found: Mapping[str, Any], path: str) -> tuple[Rule, ...]:
    """Rules of a JSON object that `record` made; raises DataError, naming `path`, if it is none."""
    records.check(found, path, {"keep_largest": _RULES}, remedy=_REMEDY)
    rules = []
    for entry in found["keep_largest"]:
        records.check(entry, path, _RULE, remedy=_REMEDY)
        if 0 in entry["values"]:
            raise DataError(f"{path}: a rule has the background, 0, among its values; {_REMEDY}")
        rules.append(Rule(entry["name"], tuple(entry["values"]), entry["before"], entry["after"]))
    return tuple(rules)
