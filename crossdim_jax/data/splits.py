"""Splits of cases into training and validation: by patient, reproducible, written down.

The order of patients is that of a digest of seed and name, so a split depends neither on the order
of the input nor on a random number library, and changes little when a patient is added.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from crossdim_jax.errors import ConfigError, DataError, check_name
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.storage.records import NAMES, TEXT, Form, objects_of, read_record

# Of one case; the label is null where there is none.
_CONTENT = Form(
    'an object of the digests "image" and "label"',
    lambda v: (
        isinstance(v, dict)
        and isinstance(v.get("image"), str)
        and isinstance(v.get("label"), str | None)
    ),
)


class HasPatient(Protocol):
    """Case as far as a split needs it."""

    id: str
    patient: str


def _apart() -> Any:
    return dataclasses.field(default_factory=dict, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Split:
    """Split of cases: sorted ids.

    Attributes:
      train: ids to learn from.
      validation: ids to watch; may be empty.
      test: ids to evaluate in the end, in place of those that were watched; empty: those.
      contents: {case id: {"image": digest, "label": digest}} of the cases when they were split; not
        compared, and empty where it is not known.
      accepted: {case id: what of it was changed in the course of the training}; not compared.
    """

    train: list[str]
    validation: list[str]
    test: list[str] = dataclasses.field(default_factory=list)
    contents: dict[str, dict[str, str | None]] = _apart()
    accepted: dict[str, str] = _apart()

    @property
    def evaluated(self) -> list[str]:
        """Ids that are scored in the end."""
        return self.test or self.validation

    @property
    def watched(self) -> list[str]:
        """Ids that are held out: to watch, and to evaluate in the end."""
        return [*self.validation, *self.test]

    def write(self, path: str | os.PathLike) -> Path:
        """Writes JSON, all or nothing. Raises DataError if the folder cannot be written to."""
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(dataclasses.asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, path: str | os.PathLike) -> "Split":
        """Reads a file of `write`. Raises DataError naming the file if it is not that."""
        sides = {"train": NAMES, "validation": NAMES}
        later = {"test": NAMES, "contents": objects_of(_CONTENT), "accepted": objects_of(TEXT)}
        content = read_record(path, sides, optional=later, remedy="put it back")
        split = cls(**{name: content[name] for name in (*sides, *later) if name in content})
        held_out = {*split.validation, *split.test}
        if both := sorted(held_out.intersection(split.train)):
            raise DataError(f"{path}: case {both[0]!r} trains and is held out; put it back")
        return split


def holdout(patients: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Patients (train, validation) of a holdout.

    `fraction` of them validate, rounded, but at least one.

    A fraction of 0 leaves no validation. Raises ConfigError if the fraction is outside [0, 1) or
    no patient is left to train on.
    """
    if not 0 <= fraction < 1:
        raise ConfigError(f"split.fraction is {fraction}; expected 0 or more and less than 1")
    order = _shuffled(patients, seed)
    count = max(1, round(fraction * len(order))) if fraction else 0
    if count >= len(order):
        raise ConfigError(
            f"a hold-out of {fraction} leaves none of {len(order)} patients to train on; provide "
            "more cases, or set split.kind to 'all' to train without validation"
        )
    return sorted(order[count:]), sorted(order[:count])


def kfold(patients: Sequence[str], folds: int, fold: int, seed: int) -> tuple[list[str], list[str]]:
    """Patients (train, validation) of one fold; every patient validates in exactly one.

    Raises ConfigError unless 2 <= folds <= patients and 0 <= fold < folds.
    """
    order = _shuffled(patients, seed)
    if not 2 <= folds <= len(order):
        raise ConfigError(f"split.folds is {folds}; expected 2 to {len(order)}, one per patient")
    if not 0 <= fold < folds:
        raise ConfigError(f"split.fold is {fold}; expected 0 to {folds - 1}")
    validation = order[fold::folds]
    return sorted(set(order) - set(validation)), sorted(validation)


def make(
    cases: Sequence[HasPatient],
    *,
    kind: str = "holdout",
    fraction: float = 0.2,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    validation: Sequence[str] = (),
    official: Callable[[], Mapping[str, Sequence[str]]] | None = None,
) -> Split:
    """Splits cases by patient.

    Args:
      cases: anything with `id` and `patient`, in any order.
      kind: "holdout" (uses fraction, seed), "kfold" (folds, fold, seed), "fixed" (validation),
        "official" (official), or "all": everything trains.
      validation: for "fixed", the ids that validate; all others train.
      official: for "official", gives the challenge's lists of patients, {"training": [...],
        "validation": ..., "testing": ...}.

    Raises:
      ConfigError: a setting is unknown or out of range, names a case that is not there, or would
        put one patient on both sides.
      DataError: two cases have the same id.
    """
    ids = [case.id for case in cases]
    if twice := sorted(i for i, count in collections.Counter(ids).items() if count > 1):
        raise DataError(f"case ids must be unique; found more than once: {', '.join(twice)}")
    patients = [case.patient for case in cases]
    if kind == "fixed":
        return _fixed(cases, validation)
    if kind == "official":
        if official is None:
            raise ConfigError("split.kind is 'official', but these cases come with no such lists")
        return _official(cases, official())
    kinds = {
        "holdout": lambda: holdout(patients, fraction, seed),
        "kfold": lambda: kfold(patients, folds, fold, seed),
        "all": lambda: (patients, []),
    }
    check_name("split.kind", kind, [*kinds, "fixed", "official"])
    train, held_out = (set(side) for side in kinds[kind]())
    return Split(
        sorted(case.id for case in cases if case.patient in train),
        sorted(case.id for case in cases if case.patient in held_out),
    )


def _fixed(cases: Sequence[HasPatient], validation: Sequence[str]) -> Split:
    known = {case.id: case.patient for case in cases}
    held_out = set(validation)
    if unknown := sorted(held_out - set(known)):
        raise ConfigError(
            f"split.validation names cases that are not there: {', '.join(unknown)}; "
            f"there are {', '.join(sorted(known)[:10])}{', ...' if len(known) > 10 else ''}"
        )
    if not held_out:
        raise ConfigError("split.kind is 'fixed' but split.validation names no case")
    train = sorted(set(known) - held_out)
    if not train:
        raise ConfigError("split.validation names every case; none is left to train on")
    if both := sorted({known[i] for i in train} & {known[i] for i in held_out}):
        raise ConfigError(
            f"split.validation separates scans of one patient: {', '.join(both)}; name all of "
            "a patient's scans or none"
        )
    return Split(train, sorted(held_out))


def _official(cases: Sequence[HasPatient], lists: Mapping[str, Sequence[str]]) -> Split:
    """Official split: every case where its patient is listed.

    Raises DataError if a patient is in no list, in two, or listed and not there.
    """
    of = {patient: name for name, patients in lists.items() for patient in patients}
    there = {case.patient for case in cases}
    named = [patient for patients in lists.values() for patient in patients]
    for what, faulty in (
        ("in several lists", {patient for patient in named if named.count(patient) > 1}),
        ("in no list", there - set(of)),
        ("in a list, but without images", set(of) - there),
    ):
        if faulty:
            some = ", ".join(sorted(faulty)[:10]) + (", ..." if len(faulty) > 10 else "")
            raise DataError(
                f"the official split does not fit the cases: {len(faulty)} patients are {what} "
                f"({some}); complete the data, or set split.kind to kfold or holdout"
            )
    parts = [
        sorted(case.id for case in cases if of[case.patient] == name)
        for name in ("training", "validation", "testing")
    ]
    if not parts[0] or not parts[1]:
        raise DataError("the official split names nobody to train on, or nobody to validate")
    return Split(*parts)


def _shuffled(patients: Sequence[str], seed: int) -> list[str]:
    """Distinct patients in an order that depends on seed and names only."""

    def place(name: str) -> str:  # a folder's name may hold bytes that are not UTF-8
        return hashlib.sha256(f"{seed}:{name}".encode(errors="surrogatepass")).hexdigest()

    return sorted(set(patients), key=place)
