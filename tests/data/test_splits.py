import dataclasses
import os
import random

import pytest

from crossdim_jax.data import splits
from crossdim_jax.errors import ConfigError, DataError


@dataclasses.dataclass
class Scan:
    id: str
    patient: str


SCANS = [
    Scan(f"BraTS-GLI-{p:05d}-{v:03d}", f"BraTS-GLI-{p:05d}") for p in range(11) for v in (0, 1)
]
PATIENT = {scan.id: scan.patient for scan in SCANS}
KINDS = [
    {"kind": "holdout", "fraction": 0.2, "seed": 3},
    *({"kind": "kfold", "folds": 4, "fold": fold, "seed": 3} for fold in range(4)),
]


@pytest.mark.parametrize("settings", KINDS)
def test_a_split_is_complete_disjoint_and_by_patient(settings):
    split = splits.make(SCANS, **settings)
    assert sorted(split.train + split.validation) == sorted(PATIENT)
    assert not {PATIENT[i] for i in split.train} & {PATIENT[i] for i in split.validation}
    assert split.train and split.validation


@pytest.mark.parametrize("settings", KINDS)
def test_the_order_of_the_input_does_not_matter(settings):
    mixed = random.Random(0).sample(SCANS, len(SCANS))
    assert splits.make(mixed, **settings) == splits.make(SCANS, **settings)


def test_every_patient_validates_in_exactly_one_fold_and_folds_are_even():
    folds = [splits.make(SCANS, kind="kfold", folds=4, fold=f).validation for f in range(4)]
    assert sorted(sum(folds, [])) == sorted(PATIENT)
    patients = [len({PATIENT[i] for i in fold}) for fold in folds]
    assert max(patients) - min(patients) <= 1


def test_a_hold_out_has_the_fraction_asked_for_and_at_least_one_patient():
    names = [f"p{i}" for i in range(10)]
    assert len(splits.holdout(names, 0.3, seed=0)[1]) == 3
    assert len(splits.holdout(names, 0.01, seed=0)[1]) == 1
    assert splits.holdout(names, 0, seed=0) == (sorted(names), [])
    assert splits.make(SCANS, kind="all").validation == []


def test_seeds_differ_and_the_choice_is_pinned():
    names = [f"p{i}" for i in range(10)]
    assert len({tuple(splits.holdout(names, 0.3, seed)[1]) for seed in range(5)}) > 1
    # Written down here: a split must not change with a library or a Python version.
    assert splits.holdout(names, 0.3, seed=0)[1] == PINNED


PINNED = ["p2", "p4", "p7"]


def test_an_explicit_validation_set():
    wanted = ["BraTS-GLI-00003-001", "BraTS-GLI-00003-000"]
    split = splits.make(SCANS, kind="fixed", validation=wanted)
    assert split.validation == sorted(wanted) and len(split.train) == 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "nosuch"}, "split.kind='nosuch' is unknown; known: holdout, kfold, all, fixed"),
        ({"fraction": 1.0}, "split.fraction is 1.0"),
        ({"fraction": 0.99}, "none of 11 patients to train on"),
        ({"kind": "kfold", "folds": 12}, "split.folds is 12; expected 2 to 11"),
        ({"kind": "kfold", "folds": 1}, "split.folds is 1"),
        ({"kind": "kfold", "fold": 5}, "split.fold is 5; expected 0 to 4"),
        ({"kind": "fixed"}, "names no case"),
        ({"kind": "fixed", "validation": ["x", "BraTS-GLI-00003-001"]}, "not there: x;"),
        ({"kind": "fixed", "validation": list(PATIENT)}, "none is left to train on"),
        ({"kind": "fixed", "validation": ["BraTS-GLI-00003-001"]}, "one patient: BraTS-GLI-00003"),
    ],
)
def test_settings_that_cannot_be_met(settings, says):
    with pytest.raises(ConfigError, match=says):
        splits.make(SCANS, **settings)


LISTS = {
    "training": [f"BraTS-GLI-{p:05d}" for p in range(8)],
    "validation": ["BraTS-GLI-00008"],
    "testing": ["BraTS-GLI-00009", "BraTS-GLI-00010"],
}


def test_an_official_split_has_a_test_set_which_is_what_is_evaluated():
    split = splits.make(SCANS, kind="official", official=lambda: LISTS)
    assert {PATIENT[i] for i in split.train} == set(LISTS["training"])
    assert {PATIENT[i] for i in split.validation} == set(LISTS["validation"])
    assert {PATIENT[i] for i in split.test} == set(LISTS["testing"])
    assert split.evaluated == split.test
    assert splits.make(SCANS).evaluated == splits.make(SCANS).validation
    untested = splits.make(SCANS[:18], kind="official", official=lambda: LISTS | {"testing": []})
    assert untested.evaluated == untested.validation


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        ({"testing": []}, "2 patients are in no list .BraTS-GLI-00009, BraTS-GLI-00010"),
        ({"training": [*LISTS["training"], "x"]}, "1 patients are in a list, but without images"),
        ({"validation": ["BraTS-GLI-00008", "BraTS-GLI-00003"]}, "1 patients are in several lists"),
        ({"validation": [], "testing": LISTS["testing"] + LISTS["validation"]}, "nobody to valid"),
    ],
)
def test_official_lists_that_do_not_fit(lists, says):
    with pytest.raises(DataError, match=says):
        splits.make(SCANS, kind="official", official=lambda: LISTS | lists)


def test_cases_without_official_lists():
    with pytest.raises(ConfigError, match="these cases come with no such lists"):
        splits.make(SCANS, kind="official")


def test_ids_must_be_unique():
    with pytest.raises(DataError, match="more than once: a"):
        splits.make([Scan("a", "a"), Scan("a", "b"), Scan("c", "c")])


def test_a_split_is_written_and_read_back(tmp_path):
    for split in (
        splits.make(SCANS, seed=4),
        splits.make(SCANS, kind="official", official=lambda: LISTS),
    ):
        path = split.write(tmp_path / "run" / "split.json")
        assert splits.Split.read(path) == split
    old = tmp_path / "old.json"  # of a run before there were test sets
    old.write_text('{"train": ["a"], "validation": ["b"]}')
    assert splits.Split.read(old) == splits.Split(["a"], ["b"])
    assert [p.name for p in path.parent.iterdir()] == ["split.json"]
    with pytest.raises(DataError, match="absent.json: there is no such file"):
        splits.Split.read(tmp_path / "absent.json")
    for text, why in (
        ('{"train": ["a"]}', "has no field 'validation'"),
        ('{"train": ["a", 1], "validation": []}', "'train' is .*expected a list of texts"),
        ('{"train": ["a", "a"], "validation": []}', "each once"),
        ('{"train": ["a"], "validation": ["a"]}', "case 'a' trains and is held out"),
        ('{"train": ["a"], "validation": [], "test": null}', "'test' is null"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=f"bad.json: .*{why}"):
            splits.Split.read(tmp_path / "bad.json")
    with pytest.raises(DataError, match="bad.json/split.json: cannot be written"):
        split.write(tmp_path / "bad.json" / "split.json")


def test_names_that_are_not_utf8_are_split_and_read_back_as_they_are(tmp_path):
    """Such as a folder that was named in Latin-1; Python holds its bytes as surrogates."""
    names = [os.fsdecode(b"M\xfcller"), "M\\xfcller", "Müller", "a\nb", "b"]
    split = splits.make([Scan(name, name) for name in names], kind="kfold", folds=2)
    assert splits.Split.read(split.write(tmp_path / "splits.json")) == split
    assert sorted([*split.train, *split.validation]) == sorted(names)


@pytest.mark.parametrize("settings", [*KINDS, {"kind": "all"}])
def test_a_test_set_is_of_whole_patients_and_the_others_are_split_without_it(settings):
    split = splits.make(SCANS, test=0.3, **settings)
    tested = {PATIENT[i] for i in split.test}
    assert len(split.test) == 2 * len(tested) == 6 and split.evaluated == split.test
    rest = [scan for scan in SCANS if scan.patient not in tested]
    assert dataclasses.replace(split, test=[]) == splits.make(rest, **settings)
    same = {"test": 0.3, "seed": settings.get("seed", 0)}  # whatever the kind
    assert splits.make(SCANS, kind="all", **same).test == split.test


def test_an_official_split_gives_a_test_set_unless_it_has_one():
    names = sorted({scan.patient for scan in SCANS})
    lists = {"training": names[:8], "validation": names[8:]}
    split = splits.make(SCANS, kind="official", test=0.2, official=lambda: lists)
    kept = {PATIENT[i] for i in split.train} | {PATIENT[i] for i in split.validation}
    assert kept == set(names) - {PATIENT[i] for i in split.test} and len(kept) == 9
    lists["testing"] = [names[7]]
    lists["training"] = names[:7]
    with pytest.raises(ConfigError, match="test set of its own"):
        splits.make(SCANS, kind="official", test=0.2, official=lambda: lists)
    with pytest.raises(ConfigError, match="'fixed' names what is held out"):
        splits.make(SCANS, kind="fixed", test=0.2, validation=[SCANS[0].id])
    with pytest.raises(ConfigError, match="none of 11 patients"):
        splits.make(SCANS, kind="all", test=0.99)


def test_fewer_cases_are_among_more_whole_patients_first_and_nothing_else_changes():
    whole = splits.make(SCANS, **KINDS[0])
    draws = [splits.make(SCANS, training_cases=n, **KINDS[0]) for n in range(1, 19)]
    for fewer, more in zip(draws[:-1], draws[1:], strict=True):
        assert set(fewer.train) < set(more.train) and fewer.validation == whole.validation
        assert sorted(fewer.train + fewer.unused) == whole.train
        patients = len({PATIENT[i] for i in fewer.train})
        assert patients == -(-len(fewer.train) // 2)  # two scans each
    assert draws[-1] == whole == splits.make(SCANS, training_cases=1.0, **KINDS[0])
    assert splits.make(SCANS, training_cases=0.5, **KINDS[0]) == draws[8]
    assert splits.make(SCANS, training_cases=0.001, **KINDS[0]) == draws[0]
    assert draws[4].training == "5 of 18" and whole.training == "18"
    with pytest.raises(ConfigError, match="data.cases=19: expected at most 18"):
        splits.make(SCANS, training_cases=19, **KINDS[0])


def test_a_seed_draws_its_own_cases_and_the_draw_is_pinned():
    by_seed = [splits.make(SCANS, kind="all", training_cases=4, draw_seed=s) for s in range(5)]
    assert len({tuple(split.train) for split in by_seed}) > 1
    # Written down here: runs of a seed are compared with each other, whenever they were made.
    assert by_seed[0].train == [f"BraTS-GLI-{p:05d}-{v:03d}" for p in (3, 6) for v in (0, 1)]
