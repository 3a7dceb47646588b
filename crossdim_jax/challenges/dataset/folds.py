"""The folds of a data set: as its files say, else those that nnU-Net makes of the same cases."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.dataset.description import Description
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.storage import reading

FILE = "splits_final.json"
COUNT, SEED = 5, 12345  # nnU-Net 2.8.1, utilities/crossval_split.py
_EXPECTED = 'a list of folds, each {"train": [case ids], "val": [case ids]},'
_LIMIT = 64 << 20  # bytes


def lists(description: Description, cases: Sequence[CaseFiles], fold: int) -> dict[str, list[str]]:
    """Patients of one fold: {"training", "validation", "testing"}.

    Taken from `splits_final.json` in the data root, else from the folds of a MONAI datalist, else
    made as nnU-Net makes them.

    Raises:
      ConfigError: there is no such fold, or there are fewer patients than folds.
      DataError: the file cannot be used, or separates the scans of a patient.
    """
    path, there = description.root / FILE, count(description)
    if not 0 <= fold < there:
        raise ConfigError(
            f"config.data.split.fold={fold}: {description.root} has {there} folds, 0 to {there - 1}"
        )
    if path.exists():
        train, validation = _read(path)[fold]
        return _by_patient(path, cases, train, validation)
    if _numbers(description):
        return _listed(description, cases, fold)
    train, validation = nnunet(cases)[fold]
    return {"training": train, "validation": validation, "testing": []}


def count(description: Description) -> int:
    """Number of folds that `lists` knows. Raises DataError if the file cannot be used."""
    path = description.root / FILE
    if path.exists():
        return len(_read(path))
    return 1 + max(_numbers(description), default=COUNT - 1)


def _numbers(description: Description) -> list[int]:
    """The folds that a MONAI datalist names."""
    return [entry.fold for entry in description.training or () if entry.fold is not None]


def nnunet(cases: Sequence[CaseFiles], count: int = COUNT) -> list[tuple[list[str], list[str]]]:
    """(training, validation) patients of nnU-Net's folds.

    Equal to scikit-learn's `KFold(count, shuffle=True, random_state=12345)` over the sorted case
    ids where each patient has one case; patients with several take the place of their first.

    Raises ConfigError if there are fewer patients than folds.
    """
    ordered = sorted(cases, key=lambda case: case.id)
    names = list(dict.fromkeys(case.patient for case in ordered))
    if len(names) < count:
        raise ConfigError(
            f"{len(names)} patients make no {count} folds; set config.data.split.kind to 'holdout' "
            "(or 'all', to train without validation)"
        )
    order = np.arange(len(names))
    np.random.RandomState(SEED).shuffle(order)  # a frozen stream: the same for ever
    sizes = np.full(count, len(names) // count)
    sizes[: len(names) % count] += 1
    result = []
    for chosen in np.split(order, np.cumsum(sizes)[:-1]):
        held = set(chosen.tolist())
        sides = ([n for i, n in enumerate(names) if (i in held) is side] for side in (False, True))
        result.append(tuple(sides))
    return result


def _read(path: Path) -> list[tuple[list[str], list[str]]]:
    """The case ids (training, validation) of each fold in nnU-Net's file."""
    with reading.naming(path, _EXPECTED):
        folds = json.loads(reading.read_bytes(path, limit=_LIMIT))
        if not isinstance(folds, list) or not all(map(_is_fold, folds)) or not folds:
            raise ValueError("it is something else")
    return [(fold["train"], fold["val"]) for fold in folds]


def _is_fold(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(side), list) and all(isinstance(case, str) for case in value[side])
        for side in ("train", "val")
    )


def _by_patient(
    path: Path, cases: Sequence[CaseFiles], train: Sequence[str], validation: Sequence[str]
) -> dict[str, list[str]]:
    """Lists of cases as lists of patients."""
    of = {case.id: case.patient for case in cases}
    named = [*train, *validation]
    if faulty := sorted(set(of) ^ set(named)):
        raise DataError(
            f"{path}: a fold must name every case of the data set once; {len(faulty)} are named "
            f"and not there, or there and not named: {', '.join(faulty[:5])}"
        )
    sides = [sorted({of[case] for case in side}) for side in (train, validation)]
    if both := sorted(set(sides[0]) & set(sides[1])):
        scans = sorted(case for case in of if of[case] == both[0])
        raise DataError(
            f"{path}: separates the scans of {len(both)} patients, such as {', '.join(scans[:5])}; "
            "move all of a patient's to one side, or remove the file"
        )
    return {"training": sides[0], "validation": sides[1], "testing": []}


def _listed(
    description: Description, cases: Sequence[CaseFiles], fold: int
) -> dict[str, list[str]]:
    """MONAI's rule: `fold` validates, everything else trains."""
    entries = description.training
    images = {
        (description.root / entry.images[0]).resolve() for entry in entries if entry.fold == fold
    }
    held = [case.id for case in cases if case.images[0].resolve() in images]
    rest = [case.id for case in cases if case.id not in set(held)]
    return _by_patient(description.path, cases, rest, held)
