"""Cases of a data set: found in every form; faulty ones named, all at once; folds and patients."""

import json
import os
import shutil

import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.dataset import folds
from crossdim_jax.challenges.patients import FILE
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.imaging.case import CaseFiles
from tests import dataset_folders as folders


def challenge(root, **settings):
    return challenges.get("dataset", root=str(root), **settings)


def found(root, *, labelled=True, **settings):
    return challenge(root, **settings).cases(root, labelled=labelled)


def failures(root, **settings) -> dict[str, str]:
    with pytest.raises(ManyErrors) as error:
        found(root, **settings)
    return dict(error.value.failures)


def names(cases) -> list:
    return [(c.id, [p.name for p in c.images], c.label and c.label.name) for c in cases]


def test_a_raw_folder_of_nnunet(tmp_path):
    root = folders.nnunet(tmp_path, ("b", "a_b", "a"), channels=2)
    assert names(found(root)) == [
        (case, [f"{case}_0000.nii.gz", f"{case}_0001.nii.gz"], f"{case}.nii.gz")
        for case in ("a", "a_b", "b")
    ]


def test_a_raw_folder_whose_json_lists_its_files(tmp_path):
    root = folders.nnunet(tmp_path, channels=2)
    shutil.move(root / "imagesTr", root / "elsewhere")
    listed = {
        case: {
            "images": [f"elsewhere/{case}_0000.nii.gz", f"./elsewhere/{case}_0001.nii.gz"],
            "label": f"labelsTr/{case}.nii.gz",
        }
        for case in ("a", "b", "c")
    }
    folders.describe(root, ["file_ending"], dataset=listed, channel_names={"0": "T0", "1": "T1"})
    assert [case for case, *_ in names(found(root))] == ["a", "b", "c"]


@pytest.mark.parametrize("channels", [1, 4])
def test_a_task_of_the_decathlon(tmp_path, channels):
    root = folders.decathlon(tmp_path, channels=channels)
    ours = challenge(root)
    cases = ours.cases(root, labelled=True)
    assert names(cases)[0] == ("t_1", ["t_1.nii.gz"], "t_1.nii.gz")
    assert ours.load(cases[0]).image.shape == (6, 8, 9, channels)
    assert names(ours.cases(root, labelled=False))[0] == ("t_19", ["t_19.nii.gz"], None)
    assert len(ours.cases(root / "imagesTs", labelled=False)) == 3


def test_a_datalist_of_monai(tmp_path, caplog):
    root = folders.datalist(tmp_path, modality="MRI")
    ours = challenge(root)
    cases = ours.cases(root, labelled=True)
    assert [case.id for case in cases] == ["s1_t1", "s2_t1", "s3_t1"]
    assert ours.modalities == ("MRI_0", "MRI_1")
    assert ours.classes == ("background", "label_1", "label_5")
    assert '"label_5": 5' in caplog.text  # what to write to name them
    split = ours.official_split(root)
    assert split["validation"] == ["s1_t1", "s3_t1"] and split["training"] == ["s2_t1"]


@pytest.mark.parametrize("pair", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_two_plain_folders(tmp_path, pair, caplog):
    for k, case in enumerate(("x", "y_0001")):
        folders.save(tmp_path / pair[0] / f"{case}.nii.gz", folders.image(k))
        folders.save(tmp_path / pair[1] / f"{case}.nii.gz", folders.label(3))
    assert names(found(tmp_path)) == [
        ("x", ["x.nii.gz"], "x.nii.gz"),
        ("y_0001", ["y_0001.nii.gz"], "y_0001.nii.gz"),
    ]
    assert "0 background, 3 label_3" in caplog.text


def test_two_folders_may_number_channels(tmp_path):
    root = folders.nnunet(tmp_path, channels=2)
    (root / "dataset.json").unlink()
    ours = challenge(root)
    assert ours.modalities == ("channel_0", "channel_1")
    assert [case.id for case in ours.cases(root, labelled=True)] == ["a", "b", "c"]


def test_every_faulty_case_is_named(tmp_path):
    root = folders.nnunet(tmp_path, ("a", "b", "c", "d", "e", "f"), channels=3)
    images, labels = root / "imagesTr", root / "labelsTr"
    (images / "a_0001.nii.gz").unlink()
    (labels / "b.nii.gz").unlink()
    for path in images.glob("c_*"):
        path.unlink()
    shutil.copy(images / "d_0000.nii.gz", images / "d_0003.nii.gz")
    shutil.copy(images / "e_0000.nii.gz", images / "e.nii.gz")
    (images / "f_0002.nii.gz").unlink()
    (images / "f_0002.nii.gz").symlink_to(tmp_path / "gone")
    told = failures(root)
    assert set(told) == {"a", "b", "c", "d", "e", "f"}
    assert f"channel 1 (T1) is missing: expected {images / 'a_0001.nii.gz'}" in told["a"]
    assert "has no label; add b.nii.gz" in told["b"]
    assert f"{labels / 'c.nii.gz'}: is a label without an image; add" in told["c"]
    assert "is channel 3, but there are 3, counted from 0" in told["d"]
    assert "its name ends in no channel number; expected e_0000.nii.gz to e_0002" in told["e"]
    assert "is a link to" in told["f"]
    # The others are found all the same, for whoever collects the faults.
    errors = []
    assert challenge(root).cases(root, labelled=True, errors=errors) == [] and len(errors) == 6


def test_orphans_of_real_data_are_named(shared_data):
    told = failures(shared_data / "hippocampus_rejects")
    assert "has no label" in told["hippocampus_118"]
    for case in ("hippocampus_010", "hippocampus_281"):
        assert f"{case}.nii.gz: is a label without an image" in told[case]


def test_files_that_a_json_lists_and_are_faulty(tmp_path):
    entries = [
        {"image": "i/a.nii.gz", "label": "l/a.nii.gz"},
        {"image": "i/a.nii.gz", "label": "l/a.nii.gz"},
        {"image": "i/gone.nii.gz", "label": "l/a.nii.gz"},
        {"image": "i/b.nii.gz"},
        {"image": ["i/c.nii.gz", "i/d.nii.gz"], "label": "l/a.nii.gz"},
        {"image": "../x/e.nii.gz", "label": "l/a.nii.gz"},
        {"image": "/etc/passwd", "label": "l/a.nii.gz"},
        {"image": "$HOME/f.nii.gz", "label": "l/a.nii.gz"},
        {"image": "i/out.nii.gz", "label": "l/a.nii.gz"},
    ]
    root = tmp_path / "root"
    for name in ("i/a", "i/b", "i/c", "i/d", "l/a", "../x/e"):
        folders.save(root / f"{name}.nii.gz", folders.label(1))
    (root / "i/out.nii.gz").symlink_to(tmp_path / "x/e.nii.gz")
    folders.datalist(root, "dataset.json", entries, modality={"0": "CT"}, labels=folders.LABELS)
    told = failures(root)
    assert "lists it more than once" in told["i_a"]
    assert "there is no such file, but dataset.json lists it" in told["i_gone"]
    assert "lists no label for it" in told["i_b"]
    assert "lists 2 images for it, expected 1" in told["i_c"]
    outside = [why for why in told.values() if "lies outside" in why]
    assert len(outside) == 4 and all("outside_root=True" in why for why in outside)


def test_files_outside_of_the_root_are_read_if_that_is_asked_for(tmp_path, monkeypatch):
    folders.save(tmp_path / "far/a.nii.gz", folders.label(1))
    monkeypatch.setenv("FAR", str(tmp_path / "far"))
    entries = [{"image": "$FAR/a.nii.gz", "label": "../far/a.nii.gz"}]
    (tmp_path / "root").mkdir()
    root = folders.datalist(
        tmp_path / "root", "dataset.json", entries, modality={"0": "CT"}, labels=folders.LABELS
    )
    (case,) = found(root, outside_root=True)
    assert case.images == (tmp_path / "far/a.nii.gz",)


def test_a_wrong_count_and_unlisted_files_are_warned_of(tmp_path, caplog):
    root = folders.nnunet(tmp_path / "n", numTraining=5)
    assert len(found(root)) == 3
    assert "numTraining is 5, but there are 3 cases" in caplog.text
    root = folders.decathlon(tmp_path / "m")
    folders.save(root / "imagesTr/t_4.nii.gz", folders.image())
    assert len(found(root)) == 3
    assert "does not list 1 files" in caplog.text and "t_4.nii.gz" in caplog.text


def test_files_of_another_ending_are_passed_over(tmp_path, caplog):
    root = folders.nnunet(tmp_path)
    folders.save(root / "imagesTr/z_0000.nii", folders.image())
    assert len(found(root)) == 3 and "do not end in .nii.gz (file_ending)" in caplog.text


def test_new_cases_are_numbered_or_hold_all_channels(tmp_path):
    ours = challenge(folders.nnunet(tmp_path / "data", channels=2))
    new = tmp_path / "new"
    for c in (0, 1):
        folders.save(new / f"p_{c:04d}.nii.gz", folders.image(c))
    folders.save(new / "both.nii.gz", np.stack([folders.image(c) for c in (0, 1)], -1))
    cases = ours.cases(new, labelled=False)
    assert [case.id for case in cases] == ["both", "p"]
    both, apart = (ours.load(case).image for case in cases)
    np.testing.assert_array_equal(both, apart)
    (new / "p_0001.nii.gz").unlink()
    (new / "both.nii.gz").unlink()
    with pytest.raises(DataError, match=r"p_0000\.nii\.gz: has 1 channels in 1 files, expected 2"):
        ours.load(ours.cases(new, labelled=False)[0])


def test_years_at_the_end_of_names_are_no_channels(tmp_path):
    ours = challenge(folders.nnunet(tmp_path / "data"))
    for year in (2020, 2021):
        folders.save(tmp_path / "new" / f"scan_{year}.nii.gz", folders.image())
    cases = ours.cases(tmp_path / "new", labelled=False)
    assert [case.id for case in cases] == ["scan_2020", "scan_2021"]


def test_another_data_set_with_other_labels_is_refused(tmp_path):
    ours = challenge(folders.nnunet(tmp_path / "a"))
    other = folders.nnunet(tmp_path / "b", labels={"background": 0, "lung": 1, "heart": 2})
    with pytest.raises(DataError, match="its labels are 0 background, 1 lung"):
        ours.cases(other, labelled=True)
    assert len(ours.cases(folders.nnunet(tmp_path / "c"), labelled=True)) == 3


# --------------------------------------------------------------------------- patients and folds


def test_sessions_are_one_patient_and_never_apart(tmp_path):
    ids = [f"sub-{s:02d}_ses-{t}" for s in range(1, 7) for t in (1, 2)]
    root = folders.nnunet(tmp_path, ids)
    ours = challenge(root)
    assert {case.patient for case in ours.cases(root, labelled=True)} == {
        f"sub-{s:02d}" for s in range(1, 7)
    }
    split = ours.official_split(root)
    assert not set(split["training"]) & set(split["validation"]) and len(split["training"]) == 4


def test_patients_by_a_pattern_or_a_table(tmp_path):
    root = folders.nnunet(tmp_path, ("p1a", "p1b", "p2a"))
    patients = [case.patient for case in found(root, patient=r"(p\d)")]
    assert patients == ["p1", "p1", "p2"]
    with pytest.raises(ConfigError, match="finds no patient in 'p1a'"):
        found(root, patient=r"(q\d)")
    (root / FILE).write_text(json.dumps({"p1a": "x", "p1b": "x", "p2a": "x"}))
    assert {case.patient for case in found(root)} == {"x"}


# scikit-learn 1.9.1, KFold(5, shuffle=True, random_state=12345).split(range(n)): the beginnings of
# the validation sides.
KFOLD = {
    5: [[0], [4], [3], [1], [2]],
    12: [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]],
    208: [
        [14, 16, 17, 19, 20],
        [2, 10, 24, 26, 35],
        [4, 8, 9, 13, 15],
        [0, 3, 5, 6, 12],
        [1, 7, 11, 23, 29],
    ],
}


@pytest.mark.parametrize("count", KFOLD)
def test_the_folds_are_those_of_nnunet(count):
    cases = [CaseFiles(f"case_{i:03d}", f"p{count - i}", (), None) for i in range(count)]
    made = folds.nnunet(cases[::-1])
    for begin, (train, validation) in zip(KFOLD[count], made, strict=True):
        assert validation[:5] == [cases[i].patient for i in begin]
        assert sorted([*train, *validation]) == sorted(case.patient for case in cases)


def test_fewer_patients_than_folds_and_folds_that_are_not_there(tmp_path):
    root = folders.nnunet(tmp_path)
    with pytest.raises(ConfigError, match="3 patients make no 5 folds; set .*'holdout'"):
        challenge(root).official_split(root)
    root = folders.nnunet(tmp_path / "six", [f"c{i}" for i in range(6)])
    with pytest.raises(ConfigError, match="has 5 folds, 0 to 4"):
        challenge(root).official_split(root, fold=5)


def test_splits_of_ones_own(tmp_path):
    root = folders.nnunet(tmp_path, ("sub-1_ses-1", "sub-1_ses-2", "sub-2", "sub-3"))
    path = root / "splits_final.json"

    def split(train, val, fold=0):
        path.write_text(json.dumps([{"train": train, "val": val}]))
        return challenge(root).official_split(root, fold=fold)

    one, two = ["sub-1_ses-1", "sub-1_ses-2"], ["sub-2", "sub-3"]
    assert split(one, two) == {
        "training": ["sub-1"],
        "validation": ["sub-2", "sub-3"],
        "testing": [],
    }
    with pytest.raises(DataError, match=r"splits_final\.json: separates the scans of 1 patients"):
        split([one[0], *two], [one[1]])
    with pytest.raises(DataError, match=r"must name every case .*sub-9"):
        split(one, [*two, "sub-9"])
    with pytest.raises(ConfigError, match="has 1 folds, 0 to 0"):
        split(one, two, fold=1)
    for content in ("{}", "[]", "[3]", "[{", '[{"train": 1, "val": []}]'):
        path.write_text(content)
        with pytest.raises(DataError, match=r"splits_final\.json"):
            challenge(root).official_split(root)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="named pipe"):
        challenge(root).official_split(root)
