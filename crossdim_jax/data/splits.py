"""Splits of cases into training and validation: by patient, reproducible, written down.

The order of patients is that of a digest of seed and name, so a split depends neither on the order
of the input nor on a random number library, and changes little when a patient is added.
"""

import collections
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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
      unused: ids that would train, had not fewer been asked for.
      contents: {case id: {"image": digest, "label": digest}} of the cases when they were split; not
        compared, and empty where it is not known.
      accepted: {case id: what of it was changed in the course of the training}; not compared.
    """

    train: list[str]
    validation: list[str]
    test: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)
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

    @property
    def training(self) -> str:
        """Number of the training cases in words: "20 of 208"."""
        count, unused = len(self.train), len(self.unused)
        return f"{count} of {count + unused}" if unused else str(count)

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
        later = {
            "test": NAMES,
            "unused": NAMES,
            "contents": objects_of(_CONTENT),
            "accepted": objects_of(TEXT),
        }
        content = read_record(path, sides, optional=later, remedy="put it back")
        split = cls(**{name: content[name] for name in (*sides, *later) if name in content})
        held_out = {*split.watched, *split.unused}
        if both := sorted(held_out.intersection(split.train)):
            raise DataError(
                f"{path}: case {both[0]!r} trains and is held out or unused; put it back"
            )
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
    test: float = 0.0,
    fraction: float = 0.2,
    folds: int = 5,
    fold: int = 0,
    seed: int = 0,
    validation: Sequence[str] = (),
    official: Callable[[], Mapping[str, Sequence[str]]] | None = None,
    training_cases: int | float | None = None,
    draw_seed: int = 0,
) -> Split:
    """Splits cases by patient.

    Args:
      cases: anything with `id` and `patient`, in any order.
      kind: "holdout" (uses fraction, seed), "kfold" (folds, fold, seed), "fixed" (validation),
        "official" (official), or "all": everything trains.
      test: fraction of the patients, rounded, but at least one, that is set aside for the test in
        the end; the others are split as if they were all. By `seed`; 0 for none.
      validation: for "fixed", the ids that validate; all others train.
      official: for "official", gives the challenge's lists of patients, {"training": [...],
        "validation": ..., "testing": ...}.
      training_cases: how many of the training cases train, or which fraction of them, see `drawn`;
        None: all.
      draw_seed: of that choice.

    Raises:
      ConfigError: a setting is unknown or out of range, names a case that is not there, or would
        put one patient on both sides.
      DataError: two cases have the same id.
    """
    ids = [case.id for case in cases]
    if twice := sorted(i for i, count in collections.Counter(ids).items() if count > 1):
        raise DataError(f"case ids must be unique; found more than once: {', '.join(twice)}")
    left, tested = _without_test(cases, kind, test, seed)
    split = _by_kind(left, kind, fraction, folds, fold, seed, validation, official, tested)
    if tested:
        held_out = sorted(case.id for case in cases if case.patient in tested)
        split = dataclasses.replace(split, test=held_out)
    if training_cases is None:
        return split
    train = {case.id: case.patient for case in cases if case.id in set(split.train)}
    used = set(drawn(train, training_cases, draw_seed))
    unused = sorted(set(train) - used)
    return dataclasses.replace(split, train=sorted(used), unused=unused)


def drawn(patient_of: Mapping[str, str], number: int | float, seed: int) -> list[str]:
    """The first cases in an order by seed: what fewer hold, more hold too.

    Patients are ordered by a digest of seed and name, and the scans of a patient follow each other
    by id. So a few cases are of few patients, and scans of the last one may be left out.

    Args:
      patient_of: case id -> patient.
      number: of cases; a float is the fraction of them, rounded, but at least one.

    Raises ConfigError if there are fewer.
    """
    places = {
        name: place for place, name in enumerate(_shuffled(patient_of.values(), seed, "cases"))
    }
    order = sorted(patient_of, key=lambda case: (places[patient_of[case]], case))
    if isinstance(number, float):
        number = max(1, round(number * len(order)))
    if number > len(order):
        raise ConfigError(
            f"config.data.cases={number}: expected at most {len(order)}, which is how many cases "
            "there are to train on; a number up to that, a fraction, or None for all"
        )
    return order[:number]


def _without_test(
    cases: Sequence[HasPatient], kind: str, test: float, seed: int
) -> tuple[list[HasPatient], set[str]]:
    """The cases to train and validate on, and the patients that are set aside for the test."""
    if not test:
        return list(cases), set()
    if kind == "fixed":
        raise ConfigError(f"split.test is {test}, but split.kind 'fixed' names what is held out")
    order = _shuffled([case.patient for case in cases], seed, "test")
    tested = set(order[: max(1, round(test * len(order)))])
    left = [case for case in cases if case.patient not in tested]
    if not left:
        raise ConfigError(
            f"a test set of {test} leaves none of {len(order)} patients to train on; provide more "
            "cases, or a smaller split.test"
        )
    return left, tested


def _by_kind(
    cases: Sequence[HasPatient],
    kind: str,
    fraction: float,
    folds: int,
    fold: int,
    seed: int,
    validation: Sequence[str],
    official: Callable[[], Mapping[str, Sequence[str]]] | None,
    tested: set[str],
) -> Split:
    """The split of `make` of cases from which the patients `tested` are missing."""
    patients = [case.patient for case in cases]
    if kind == "fixed":
        return _fixed(cases, validation)
    if kind == "official":
        if official is None:
            raise ConfigError("split.kind is 'official', but these cases come with no such lists")
        return _official(cases, _untested(official(), tested))
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


def _untested(lists: Mapping[str, Sequence[str]], tested: set[str]) -> Mapping[str, Sequence[str]]:
    """Official lists without the patients that were set aside."""
    if tested and lists.get("testing"):
        raise ConfigError(
            "split.test sets patients aside, but the official split has a test set of its own; "
            "expected split.test=0, or another split.kind"
        )
    return {name: [p for p in found if p not in tested] for name, found in lists.items()}


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


def _shuffled(patients: Iterable[str], seed: int, purpose: str = "") -> list[str]:
    """Distinct patients in an order that depends on seed, purpose and names only."""
    salt = f"{purpose}:{seed}" if purpose else f"{seed}"

    def place(name: str) -> str:  # a folder's name may hold bytes that are not UTF-8
        return hashlib.sha256(f"{salt}:{name}".encode(errors="surrogatepass")).hexdigest()

    return sorted(set(patients), key=place)
