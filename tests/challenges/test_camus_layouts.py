import logging
import math
import os
import shutil

import pytest

from crossdim_jax.challenges.camus import layouts
from crossdim_jax.challenges.camus.layouts import Info, find, read_info, subgroups
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles

VIEWS, NAMES = ("2CH", "4CH"), ("ED", "ES", "half_sequence")


def write_patient(folder, patient, suffix=".nii.gz", names=NAMES, labelled=True):
    """Empty files: nothing is read here."""
    (folder / patient).mkdir(parents=True)
    for view in VIEWS:
        for name in names:
            for ending in ("", "_gt") if labelled else ("",):
                (folder / patient / f"{patient}_{view}_{name}{ending}{suffix}").touch()
        (folder / patient / f"Info_{view}.cfg").write_text("ED: 1\nES: 2\n")
    return folder / patient


@pytest.fixture
def nifti(tmp_path):
    for number in (1, 2):
        write_patient(tmp_path / "camus" / "database_nifti", f"patient000{number}")
    return tmp_path / "camus"


def test_any_sensible_root_will_do(nifti):
    database = nifti / "database_nifti"
    everything = [case.id for case in find(nifti, frames="stills", labelled=True)[0]]
    assert everything == [
        f"patient000{n}_{view}_{phase}" for n in (1, 2) for view in VIEWS for phase in ("ED", "ES")
    ]
    assert [c.id for c in find(database, frames="stills", labelled=True)[0]] == everything
    one = find(database / "patient0002", frames="stills", labelled=True)[0]
    assert [case.id for case in one] == everything[4:]
    case = one[0]
    assert (case.patient, case.kind) == ("patient0002", "2CH_ED")
    assert case.images == (database / "patient0002" / "patient0002_2CH_ED.nii.gz",)
    assert case.label.name == "patient0002_2CH_ED_gt.nii.gz"


def test_films_are_cases_where_they_are_asked_for_and_for_prediction(nifti):
    films, bad = find(nifti, frames="half_sequence", labelled=True)
    assert [case.kind for case in films[:2]] == ["2CH_half_sequence", "4CH_half_sequence"]
    assert not bad and len(films) == 4
    assert len(find(nifti, frames="stills", labelled=False)[0]) == 12
    assert {case.label is None for case in films} == {False}


def test_the_old_release_counts_its_test_patients_anew(tmp_path):
    for part, labelled in (("training", True), ("testing", False)):
        write_patient(tmp_path / part, "patient0001", ".mhd", ("ED", "ES", "sequence"), labelled)
    train, _ = find(tmp_path, frames="stills", labelled=True)
    assert {case.images[0].parts[-3] for case in train} == {"training"} and len(train) == 4
    test, _ = find(tmp_path, frames="stills", labelled=False)
    assert {case.images[0].parts[-3] for case in test} == {"testing"} and len(test) == 6
    assert {case.label for case in test} == {None}
    shutil.rmtree(tmp_path / "testing")
    assert len(find(tmp_path, frames="stills", labelled=False)[0]) == 6


def test_any_images_can_be_predicted(tmp_path):
    for name in ("a.nii.gz", "b.mhd", "._c.nii.gz", "note.txt", "b_gt.mhd"):
        (tmp_path / name).touch()
    cases, bad = find(tmp_path, frames="stills", labelled=False)
    assert [(case.id, case.patient, case.kind) for case in cases] == [
        ("a", "a", ""),
        ("b", "b", ""),
    ]
    assert not bad and cases[1].label == tmp_path / "b_gt.mhd"
    assert [c.id for c in find(tmp_path / "a.nii.gz", frames="stills", labelled=False)[0]] == ["a"]
    cases, bad = find(tmp_path, frames="stills", labelled=True)
    assert [case.id for case in cases] == ["b"]
    assert bad == [("a", f"{tmp_path}/a.nii.gz has no label; expected a_gt beside it")]


def remove(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (remove("*_4CH_*"), "the 4CH view is missing; found patient0001_2CH_ED, "),
        (remove("*_2CH_ES*"), "patient0001_2CH_ES is missing, though ED is there"),
        (remove("*_2CH_ED_gt*"), "patient0001_2CH_ED has no label; expected patient0001_2CH_ED_gt"),
        (
            lambda folder: write_patient(folder.parent.parent / "copy", "patient0001"),
            "patient0001_2CH_ED is in several folders: ",
        ),
    ],
)
def test_an_incomplete_patient_is_named_and_left_out(nifti, fault, says):
    fault(nifti / "database_nifti" / "patient0001")
    good, bad = find(nifti, frames="stills", labelled=True)
    assert {case.patient for case in good} == {"patient0002"}
    ((patient, why),) = bad
    assert patient == "patient0001" and says in why


def test_prediction_takes_what_there_is(nifti):
    remove("*_4CH_*")(nifti / "database_nifti" / "patient0001")
    good, bad = find(nifti, frames="stills", labelled=False)
    assert len(good) == 9 and not bad


def test_of_one_image_in_several_formats_one_is_taken(nifti):
    (nifti / "database_nifti/patient0001/patient0001_2CH_ED.mhd").touch()
    good, bad = find(nifti, frames="stills", labelled=True)
    assert good[0].images[0].name == "patient0001_2CH_ED.nii.gz" and not bad


def test_a_root_without_cases(tmp_path):
    with pytest.raises(DataError, match="no case found; expected files such as patient0001/"):
        find(tmp_path, frames="stills", labelled=True)
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        find(tmp_path / "nowhere", frames="stills", labelled=False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "ED: 1\nES: 18\nNbFrame: 18\nSex: M\nImageQuality: Good\nEF: 54\nFrameRate: 47",
            Info(1, 18, 18, "Good", ef_percent=54.0),
        ),
        (
            "ED: 13\nES: 1\nLVedv: 94.1\nLVesv: 40.8\nLVef: 56.6",
            Info(13, 1, None, "", 94.1, 40.8, 56.6),
        ),
        ("ED : 2.0\r\nES:9\r\n", Info(2, 9)),
    ],
)
def test_cfgs_of_either_release(tmp_path, caplog, text, expected):
    path = tmp_path / "Info_2CH.cfg"
    path.write_bytes(text.encode())
    assert repr(read_info(path)) == repr(expected)  # NaN does not equal NaN
    assert not caplog.text


def test_broken_lines_of_a_cfg_are_passed_over_with_a_warning(tmp_path, caplog):
    path = tmp_path / "Info_2CH.cfg"
    path.write_bytes(
        b"ED: one\nES 9\n\xff\xfe\x00\nNbFrame:\n\nImageQuality: Poor\nES: 0\n"
        b"EF: nan\nLVedv: inf\nLVesv: -3\nED: 1.5\nNbFrame: 1e999\n"
    )
    with caplog.at_level(logging.WARNING):
        info = read_info(path)
    assert (info.ed, info.es, info.n_frames, info.quality) == (None, None, None, "Poor")
    assert math.isnan(info.ef_percent) and math.isnan(info.edv_ml) and math.isnan(info.esv_ml)
    for number in (1, 2, 3, 4, 8, 9, 10, 11, 12):
        assert f"{path}: line {number}, " in caplog.text
    assert f"{path}: es = 0 is no frame" in caplog.text
    assert repr(read_info(tmp_path / "absent.cfg")) == repr(Info())


def test_values_of_a_cfg_that_cannot_be_are_passed_over(tmp_path, caplog):
    path = tmp_path / "Info_2CH.cfg"
    path.write_text("EF: 500\nLVedv: 1e9\nLVesv: 40\n")
    info = read_info(path)
    assert math.isnan(info.ef_percent) and math.isnan(info.edv_ml) and info.esv_ml == 40
    assert f"{path}: ef_percent = 500 cannot be" in caplog.text


def test_a_cfg_is_a_small_regular_file(tmp_path):
    (tmp_path / "Info_2CH.cfg").write_bytes(bytes(1 << 17))
    with pytest.raises(DataError, match="Info_2CH.cfg: has 131072 bytes, expected at most 65536"):
        read_info(tmp_path / "Info_2CH.cfg")
    os.mkfifo(tmp_path / "Info_4CH.cfg")
    with pytest.raises(DataError, match="Info_4CH.cfg: is a named pipe"):
        read_info(tmp_path / "Info_4CH.cfg")


def test_a_film_runs_backwards_if_ed_comes_after_es():
    assert Info(18, 1).backwards and not Info(1, 18).backwards and not Info(None, 1).backwards


def test_the_cfg_of_a_case_is_that_of_its_view(nifti):
    case = find(nifti, frames="stills", labelled=True)[0][3]
    (case.images[0].parent / "Info_4CH.cfg").write_text("ImageQuality: Medium")
    assert case.kind == "4CH_ES" and layouts.info_of(case).quality == "Medium"
    assert layouts.info_of(CaseFiles("a", "a", case.images, None)).quality == ""


def write_lists(root, **lists):
    (root / "database_split").mkdir(exist_ok=True)
    for name in ("training", "validation", "testing"):
        path = root / "database_split" / f"subgroup_{name}.txt"
        path.write_text("\n".join(lists.get(name, [])) + "\n")


def test_the_official_lists(nifti):
    write_lists(nifti, training=["patient0001"], validation=["patient0002"])
    expected = {"training": ["patient0001"], "validation": ["patient0002"], "testing": []}
    assert subgroups(nifti) == subgroups(nifti / "database_nifti") == expected
    assert subgroups(nifti.parent) == expected


def test_official_lists_that_cannot_be_used(nifti):
    with pytest.raises(DataError, match="the official split is not there.* kfold or holdout"):
        subgroups(nifti)
    write_lists(nifti, training=["patient0001"], testing=["patient0002", "patient0001"])
    with pytest.raises(
        DataError, match="patient0001 in subgroup_training.txt and subgroup_testing.txt"
    ):
        subgroups(nifti)
    (nifti / "database_split" / "subgroup_validation.txt").unlink()
    with pytest.raises(DataError, match="subgroup_validation.txt: there is no such file"):
        subgroups(nifti)
