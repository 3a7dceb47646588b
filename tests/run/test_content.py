"""A run knows its cases by what they hold, and whose they are."""

import dataclasses
import json
import shutil

import pytest

from configs import brats_dxnet
from crossdim_jax.challenges import patients
from crossdim_jax.challenges.brats import phantom
from crossdim_jax.data import digests, splits
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.run import cases, content, experiment, folds, train
from crossdim_jax.storage import reading, run_folder
from tests import toy


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Two data sets of the same names."""
    folder = tmp_path_factory.mktemp("phantoms")
    for name, seed in (("a", 0), ("b", 9)):
        phantom.generate(folder / name, 4, shape=(24, 26, 24), seed=seed)
    return folder


@pytest.fixture
def run(roots, tmp_path, monkeypatch):
    """run(**fields of config.data): an experiment on a copy of the first data set."""
    shutil.copytree(roots, tmp_path / "data")
    monkeypatch.setattr(cases, "_say", cases._say.__wrapped__)

    def make(**data):
        config = brats_dxnet.get_config("debug")
        with config.unlocked():
            del config.phantoms, config.model
            config.model = {"name": "toy"}
            config.data.update(
                {"root": str(tmp_path / "data" / "a"), "cache": str(tmp_path / "cache")}
                | {"patch": (16, 16, 16)}
                | data
            )
            config.data.num_processes = 0
        return experiment.build(config, tmp_path / "run")

    with toy.registered():
        yield make


def begin(job):
    """What a training does up to its first checkpoint."""
    split = cases.prepare_cases(job)[0]
    split.write(job.workdir / run_folder.SPLITS)
    run_folder.claim(job.workdir, job.config.to_dict())
    (job.workdir / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    return split


def change(job, case, part):
    """Puts the other data set's file of that name in place."""
    path = f"{case}/{case}_{part}.nii.gz"
    root = type(job.workdir)(job.config.data.root)
    shutil.copy(root.parent / "b" / path, root / path)


def test_a_run_goes_on_with_the_same_cases_wherever_they_lie(run, tmp_path):
    split = begin(run())
    assert set(split.contents) == {f"Phantom_00{k}" for k in range(4)}
    assert splits.Split.read(tmp_path / "run" / "splits.json").contents == split.contents
    (tmp_path / "data" / "a").rename(tmp_path / "moved")
    job = run(root=str(tmp_path / "moved"), cache=str(tmp_path / "another"))
    assert begin(job) == split
    assert content.provenance(job, cases.held_out(job)) == {}


def test_other_images_under_the_same_names_are_refused_before_anything_is_decoded(run, monkeypatch):
    begin(run())
    job = run()
    change(job, "Phantom_001", "t1")
    change(job, "Phantom_002", "t1")
    change(job, "Phantom_003", "seg")
    monkeypatch.setattr(job.challenge, "load", None)
    with pytest.raises(
        DataError,
        match="splits.json: 3 of 4 cases in .* are not what this run was started with: the image "
        "of Phantom_001, Phantom_002; the label of Phantom_003. .*changed_cases=accept",
    ):
        cases.prepare_cases(job)
    with pytest.raises(ConfigError, match="changed_cases='yes' is unknown; known: refuse, accept"):
        cases.prepare_cases(run(changed_cases="yes"))


def test_a_run_that_accepts_them_says_so_and_keeps_it_on_record(run, capsys):
    begin(run())
    change(run(), "Phantom_001", "t1")
    job = run(changed_cases="accept")
    split = begin(job)
    assert "warning: " in capsys.readouterr().out and split.accepted == {"Phantom_001": "image"}
    run_folder.claim(job.workdir, run().config.to_dict())
    run_folder.claim(job.workdir, job.config.to_dict())  # the option may change on the way
    begin(run())  # and is not needed again
    held = cases.held_out(job)
    assert content.provenance(job, held) == {"changed_during_training": "the image of Phantom_001"}
    assert "held-out cases" not in capsys.readouterr().out


def test_held_out_cases_that_are_others_now_are_said_and_recorded(run, capsys):
    job = run()
    held = begin(job).validation[0]
    change(job, held, "seg")
    found = cases.held_out(job)
    assert f"held-out cases in {job.config.data.root} are not what" in capsys.readouterr().out
    assert content.provenance(job, found) == {"changed_since_training": f"the label of {held}"}


def test_without_a_cache_files_are_read_once_a_process(run, tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_NS", -(10**12))  # as if written long ago
    job = run()
    begin(job)
    shutil.rmtree(tmp_path / "cache")
    opened, open_regular = [], reading.open_regular

    def counted(path, **kwargs):
        opened.append(path)
        return open_regular(path, **kwargs)

    monkeypatch.setattr(reading, "open_regular", counted)
    cases.held_out(job)
    assert content.provenance(job, cases.held_out(job)) == {}
    images = [path for path in opened if str(path).endswith(".nii.gz")]
    assert images and len(images) == len(set(images))


def test_a_run_from_before_there_was_a_record_goes_on_and_gets_one(run, capsys):
    job = run()
    begin(job)
    path = job.workdir / run_folder.SPLITS
    old = {k: v for k, v in json.loads(path.read_text()).items() if k in ("train", "validation")}
    path.write_text(json.dumps(old))
    change(job, "Phantom_001", "t1")
    assert set(begin(job).contents) == {f"Phantom_00{k}" for k in range(4)}
    assert "warning" not in capsys.readouterr().out
    path.write_text("{torn")
    with pytest.raises(DataError, match="splits.json: not readable JSON"):
        cases.prepare_cases(job)


def same_patient(job, *groups):
    """Says of whom the cases are."""
    named = {case: f"p{k}" for k, group in enumerate(groups) for case in group}
    path = type(job.workdir)(job.config.data.root) / patients.FILE
    path.write_text(json.dumps(named))


PAIRS = (("Phantom_000", "Phantom_001"), ("Phantom_002", "Phantom_003"))
CROSSED = (("Phantom_000", "Phantom_002"), ("Phantom_001", "Phantom_003"))


def test_scans_of_one_patient_are_on_one_side(run):
    for groups in (PAIRS, CROSSED):
        same_patient(run(), *groups)
        split = cases.prepare_cases(run())[0]
        assert tuple(split.validation) in groups and tuple(split.train) in groups


def test_a_run_that_separates_a_patient_goes_on_with_its_split_and_says_so(run, capsys):
    same_patient(run(), *PAIRS)
    before = begin(run())
    assert "warning" not in capsys.readouterr().out
    same_patient(run(), *CROSSED)
    assert begin(run()) == before
    said = capsys.readouterr().out
    assert "goes on with the split that it was started with" in said
    assert "separates scans of 2 patients (p0, p1)" in said


def test_folds_of_different_rules_are_refused(run):
    job = run()
    settings = {"kind": "kfold", "folds": 2}
    parts = []
    for fold in range(2):
        part = run(split=job.config.data.split.to_dict() | settings | {"fold": fold})
        parts.append(dataclasses.replace(part, workdir=job.workdir / f"fold_{fold}"))
    same_patient(job, *PAIRS)
    begin(parts[0])
    cases.check_folds(parts)
    same_patient(job, *CROSSED)
    with pytest.raises(DataError, match="4 cases are held out by several folds or by none|2 cases"):
        cases.check_folds(parts)


def test_names_that_look_like_one_patient_are_pointed_out(run, capsys):
    files = run().challenge.cases(run().config.data.root, labelled=True)
    names = ("p1_scan1", "p1_scan2", "p2", "p3")
    files = [dataclasses.replace(f, id=n, patient=n) for f, n in zip(files, names, strict=True)]
    cases.make_split(run(), files)
    assert "p1_scan1, p1_scan2 look like scans of one patient" in capsys.readouterr().out


def test_patches_that_are_mostly_padding_and_images_that_are_not_masked_are_said(
    run, capsys, monkeypatch
):
    job = run(patch=(128, 32, 32))
    split, training, held_out = cases.prepare_cases(job)
    assert "patches of (128, 32, 32) are mostly padding: the median case" in capsys.readouterr().out
    noted = [dataclasses.replace(case, note="t1: not masked") for case in training]
    cases._say_notes([*noted, *held_out])
    assert "warning: 2 of 4 cases (" in capsys.readouterr().out
    cases.prepare_cases(run())
    assert "padding" not in capsys.readouterr().out


def test_cases_left_out_are_not_read_and_are_not_new_when_a_run_goes_on(run):
    job = run(cases=1, split={"test": 0.25, "fraction": 0.3})
    split = begin(job)
    assert [len(x) for x in (split.train, split.validation, split.test, split.unused)] == [1] * 4
    assert set(split.contents) == {*split.train, *split.watched}
    change(job, split.unused[0], "seg")
    assert begin(job) == split and [case.id for case in cases.held_out(job)] == split.test
    assert "1 of 2 cases train, 1 are held out, 1 are for the test" in train._environment(
        job, split
    )
    root = type(job.workdir)(job.config.data.root)
    unused = root / split.unused[0]
    unused.rename(root.parent / "aside")
    with pytest.raises(DataError, match=f"1 gone .'{split.unused[0]}'"):
        begin(job)
    shutil.rmtree(job.workdir)
    with pytest.raises(ConfigError, match="data.cases=9: expected at most"):
        begin(run(cases=9))


@pytest.mark.parametrize("wrong", [0, 0.0, 1.5, True, "5", -3])
def test_a_number_of_cases_is_one_or_more_or_a_fraction(run, wrong):
    with pytest.raises(ConfigError, match="config.data.cases=.*1 or more.* or a finite number"):
        run(cases=wrong)
    with pytest.raises(ConfigError, match="config.data.split.test=0.5: with kind='fixed'"):
        run(split={"test": 0.5, "kind": "fixed", "validation": ("Phantom_000",)})


def test_a_cross_validation_has_no_test_set_of_its_own(run):
    with pytest.raises(ConfigError, match="split.test=0.25: a cross-validation"):
        folds.run(run(split={"test": 0.25}))
