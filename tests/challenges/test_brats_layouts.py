import gzip
import json
import shutil

import numpy as np
import pytest

from crossdim_jax.challenges.brats.challenge import BraTS
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from tests.brats_folders import FOUR, GLI, ids


@pytest.mark.parametrize(
    ("layout", "name", "endings", "separator", "suffix"),
    [
        ("2020", "BraTS20_Training_001", FOUR, "_", ".nii"),
        ("2020", "BraTS20_Training_001", FOUR, "_", ".nii.gz"),
        ("2021", "BraTS2021_00000", FOUR, "_", ".nii.gz"),
        ("2023", "BraTS-GLI-00001-000", GLI, "-", ".nii.gz"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
def test_every_release_is_found(
    tmp_path, write_case, layout, name, endings, separator, suffix, named
):
    write_case(tmp_path, name, endings, separator=separator, suffix=suffix)
    convention = "2023" if layout == "2023" else "auto"
    challenge = BraTS(layout=layout if named else "auto", convention=convention)
    [case] = challenge.cases(tmp_path, labelled=True)
    assert case.id == name and challenge.layout == layout
    assert [path.name for path in case.images] == [f"{name}{separator}{e}{suffix}" for e in endings]
    assert case.label.name == f"{name}{separator}seg{suffix}"
    # The network sees the channels in one order, whatever a release calls them.
    loaded = challenge.load(case)
    np.testing.assert_array_equal(loaded.image[0, 0, 0], [1, 2, 3, 4])
    assert challenge.modalities == FOUR


def test_the_plain_layout_takes_modalities_and_convention_from_the_user(tmp_path, write_case):
    write_case(tmp_path, "pat0003", ("flair", "t1ce"), labels=(1, 2, 3, 4))
    write_case(tmp_path, "pat0004", ("flair", "t1ce"), suffix=".nii", labels=(3,))
    challenge = BraTS("plain", "2015", ("t1ce", "flair"))
    cases = challenge.cases(tmp_path, labelled=True)
    assert ids(cases) == ["pat0003", "pat0004"]
    np.testing.assert_array_equal(challenge.load(cases[0]).image[0, 0, 0], [2, 1])
    with pytest.raises(ConfigError, match="set modalities and convention"):
        BraTS("plain", modalities=("flair",))
    with pytest.raises(ConfigError, match="set modalities and convention"):
        BraTS("plain", "2015")


def test_the_decathlon(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_002", "BRATS_001"])
    write_msd(tmp_path, ["BRATS_500"], labels=None, folder="imagesTs")
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": modality}))
    challenge = BraTS()
    cases = challenge.cases(tmp_path, labelled=True)
    assert ids(cases) == ["BRATS_001", "BRATS_002"] and challenge.layout == "msd"
    case = challenge.load(cases[0])
    assert case.image.shape == (5, 6, 7, 4) and case.label.shape == (5, 6, 7)
    np.testing.assert_array_equal(case.image[0, 0, 0], [1, 2, 3, 4])
    # Without labels asked for, the images that the decathlon means to be predicted.
    [new] = challenge.cases(tmp_path, labelled=False)
    assert new.id == "BRATS_500" and new.label is None
    assert challenge.load(new).label is None
    assert ids(BraTS().cases(tmp_path / "imagesTs", labelled=False)) == ["BRATS_500"]


def test_the_decathlons_description_must_agree(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"])
    (tmp_path / "dataset.json").write_text('{"modality": {"0": "T2w", "1": "T1w"}}')
    with pytest.raises(DataError, match=r"dataset.json: modalities are \['T2w', 'T1w'\]"):
        BraTS().cases(tmp_path, labelled=True)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match="dataset.json: cannot be understood"):
        BraTS().cases(tmp_path, labelled=True)


def test_decathlon_faults(tmp_path, write_msd):
    write_msd(tmp_path, ["BRATS_001"], channels=2)
    write_msd(tmp_path, ["BRATS_002"], labels=None)
    challenge, errors = BraTS(), []
    [case] = challenge.cases(tmp_path, labelled=True, errors=errors)
    assert [name for name, _ in errors] == ["BRATS_002"] and "labelsTr" in errors[0][1]
    with pytest.raises(DataError, match="BRATS_001.nii.gz: has 2 channels, expected 4: FLAIR"):
        challenge.load(case)


def test_a_selection_of_modalities(tmp_path, write_case, write_msd):
    write_case(tmp_path / "a", "BraTS-GLI-00001-000", GLI, separator="-")
    write_msd(tmp_path / "b", ["BRATS_001"])
    for root, names in (("a", ("t2", "flair")), ("b", ("T2w", "FLAIR")), ("a", ("t2w", "t2f"))):
        challenge = BraTS(modalities=names, convention="2023" if root == "a" else "auto")
        [case] = challenge.cases(tmp_path / root, labelled=True)
        assert challenge.modalities == ("t2", "flair")
        np.testing.assert_array_equal(challenge.load(case).image[0, 0, 0], [4, 1])
    with pytest.raises(ConfigError, match="unknown modalities pd; known: flair"):
        BraTS(modalities=("pd",))
    with pytest.raises(ConfigError, match="different names"):
        BraTS(modalities=("t2", "t2"))


def test_a_root_that_is_itself_one_case(tmp_path, write_case):
    folder = write_case(tmp_path, "BraTS2021_00000", FOUR)
    (folder / "backup").mkdir()
    (folder / "backup" / "old_flair.nii.gz").write_bytes(b"x")
    [case] = BraTS().cases(folder, labelled=True)
    assert case.id == "BraTS2021_00000"
    shutil.rmtree(folder / "backup")
    [case] = BraTS().cases(folder.rename(tmp_path / "renamed"), labelled=True)
    assert case.id == "BraTS2021_00000" and case.images[0].parent.name == "renamed"


def test_files_of_several_cases_in_one_folder_are_refused(tmp_path, write_case):
    for name in ("pat1", "pat2"):
        for path in write_case(tmp_path, name, ("flair",)).iterdir():
            path.rename(tmp_path / path.name)
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match="files of 2 cases .pat1, pat2, .* lie together"):
        BraTS("plain", "2015", ("flair",)).cases(tmp_path, labelled=True)


def test_hidden_and_foreign_files_are_harmless(tmp_path, write_case):
    folder = write_case(tmp_path, "BraTS2021_00000", FOUR)
    for place in (tmp_path, folder):
        (place / ".DS_Store").write_bytes(b"x")
        (place / "._BraTS2021_00000_flair.nii.gz").write_bytes(b"x")
        (place / "survival.csv").write_text("x")
        (place / "BraTS2021_00000_flair.nii.gz.part").write_text("x")
    (folder / "BraTS2021_00000_mask.nii.gz").write_bytes(b"x")
    (tmp_path / ".trash").mkdir()
    (tmp_path / "predictions").mkdir()
    (tmp_path / "predictions" / "BraTS2021_00000.nii.gz").write_bytes(b"x")
    assert ids(BraTS().cases(tmp_path, labelled=True)) == ["BraTS2021_00000"]


def test_patients_of_several_visits(tmp_path, write_case):
    for name in ("BraTS-GLI-00001-001", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000"):
        write_case(tmp_path, name, GLI, separator="-")
    cases = BraTS("2023").cases(tmp_path, labelled=True)
    assert ids(cases) == sorted(ids(cases))
    assert [case.patient[-5:] for case in cases] == ["00001", "00001", "00002"]


def test_a_missing_modality_names_case_expectation_and_finding(tmp_path, write_case):
    write_case(tmp_path, "BraTS2021_00000", FOUR)
    write_case(tmp_path, "BraTS2021_00001", ("flair", "t1", "t2"))
    write_case(tmp_path, "BraTS2021_00002", FOUR, labels=None)
    (tmp_path / "BraTS2021_00003").mkdir()
    with pytest.raises(ManyErrors) as error:
        BraTS().cases(tmp_path, labelled=True)
    found = dict(error.value.failures)
    assert list(found) == ["BraTS2021_00001", "BraTS2021_00002", "BraTS2021_00003"]
    first = found["BraTS2021_00001"]
    assert first.startswith("no modality 't1ce': expected BraTS2021_00001_t1ce.nii.gz (or .nii) in")
    assert "found: BraTS2021_00001_flair.nii.gz, BraTS2021_00001_seg.nii.gz" in first
    assert found["BraTS2021_00002"].startswith("no label: expected BraTS2021_00002_seg.nii.gz")
    assert "found: nothing" in found["BraTS2021_00003"]
    # To predict, a label is not needed, and the faulty cases do not stop the others.
    errors = []
    cases = BraTS().cases(tmp_path, labelled=False, errors=errors)
    assert ids(cases) == ["BraTS2021_00000", "BraTS2021_00002"]
    assert [name for name, _ in errors] == ["BraTS2021_00001", "BraTS2021_00003"]


def test_a_file_named_after_another_case_is_a_fault(tmp_path, write_case):
    folder = write_case(tmp_path, "pat1", ("flair", "t1ce"))
    (folder / "pat1_t1ce.nii.gz").rename(folder / "pat9_t1ce.nii.gz")
    with pytest.raises(ManyErrors, match="pat1: no modality 't1ce'.*pat9_t1ce.nii.gz"):
        BraTS("plain", "2015", ("flair", "t1ce")).cases(tmp_path, labelled=True)


@pytest.mark.parametrize("layout", ["auto", "2020", "2021", "2023", "msd", "plain"])
def test_a_root_without_cases(tmp_path, layout):
    (tmp_path / "readme.txt").write_text("x")
    challenge = BraTS(layout, "2015", ("flair",))
    with pytest.raises(DataError, match=f"{tmp_path}: .*found: readme.txt"):
        challenge.cases(tmp_path, labelled=True)
    with pytest.raises(DataError, match="there is no such folder"):
        challenge.cases(tmp_path / "absent", labelled=True)
    with pytest.raises(DataError, match="readme.txt: is a file"):
        challenge.cases(tmp_path / "readme.txt", labelled=True)


@pytest.mark.parametrize("layout", ["auto", "2021"])
def test_grades_in_folders_of_their_own_are_one_root(tmp_path, write_case, layout):
    write_case(tmp_path / "LGG", "BraTS19_TCIA09_141_1", FOUR, suffix=".nii")
    write_case(tmp_path / "HGG", "Brats17_2013_10_1", FOUR)
    write_case(tmp_path / "HGG", "Brats18_CBICA_AAM_1", ("flair", "t1", "t2"))
    (tmp_path / "HGG" / "BraTS19_CBICA_AAB_1").mkdir()
    (tmp_path / "survival_data.csv").write_text("x")
    (tmp_path / "notes" / "old").mkdir(parents=True)
    challenge, errors = BraTS(layout), []
    cases = challenge.cases(tmp_path, labelled=True, errors=errors)
    assert ids(cases) == ["BraTS19_TCIA09_141_1", "Brats17_2013_10_1"]
    assert [path.parent.parent.name for path in (case.label for case in cases)] == ["LGG", "HGG"]
    assert (challenge.layout, challenge.convention) == ("2021", "2021")
    # What is named as a case and is not complete is a fault here too.
    assert [name for name, _ in errors] == ["BraTS19_CBICA_AAB_1", "Brats18_CBICA_AAM_1"]


def test_a_group_may_be_named_as_a_case_is(tmp_path, write_case):
    write_case(tmp_path / "BraTS2021_Training_Data", "BraTS2021_00000", FOUR)
    (tmp_path / "BraTS2021_00001").mkdir()
    errors = []
    assert ids(BraTS().cases(tmp_path, labelled=True, errors=errors)) == ["BraTS2021_00000"]
    assert [name for name, _ in errors] == ["BraTS2021_00001"]
    # An unpacked case may lie in a folder of its own name.
    write_case(tmp_path / "BraTS2021_00001", "BraTS2021_00001", FOUR)
    assert len(BraTS().cases(tmp_path, labelled=True)) == 2


def test_beside_cases_no_folder_is_searched(tmp_path, write_case):
    write_case(tmp_path, "BraTS-GLI-00001-000", GLI, separator="-")
    write_case(tmp_path / "old", "BraTS2021_00000", FOUR)
    assert ids(BraTS(convention="2023").cases(tmp_path, labelled=True)) == ["BraTS-GLI-00001-000"]


def test_a_case_in_two_groups_is_a_fault(tmp_path, write_case):
    for group in ("HGG", "LGG"):
        write_case(tmp_path / group, "pat1", ("flair",))
    write_case(tmp_path / "LGG", "pat2", ("flair",))
    challenge, errors = BraTS("plain", "2015", ("flair",)), []
    assert ids(challenge.cases(tmp_path, labelled=True, errors=errors)) == ["pat2"]
    [(case, message)] = errors
    assert case == "pat1"
    assert message == f"is in {tmp_path}/HGG/pat1 and in {tmp_path}/LGG/pat1; rename all but one"


def test_cases_further_down_are_hinted_at(tmp_path, write_case, write_msd):
    write_case(tmp_path / "a" / "Training" / "HGG", "BraTS19_TCIA01_1_1", FOUR)
    for layout in ("auto", "2021"):
        with pytest.raises(DataError, match=f"in {tmp_path}/a/Training/HGG: make that the root"):
            BraTS(layout).cases(tmp_path / "a", labelled=True)
    write_msd(tmp_path / "b" / "Task01_BrainTumour", ["BRATS_001"])
    with pytest.raises(DataError, match="in .*/b/Task01_BrainTumour: make that the root"):
        BraTS().cases(tmp_path / "b", labelled=True)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("modalities", [None, ("t2",)])
def test_the_misnamed_label_of_2020(tmp_path, write_case, suffix, modalities):
    folder = write_case(tmp_path, "BraTS20_Training_355", FOUR, suffix=suffix)
    label = (folder / f"BraTS20_Training_355_seg{suffix}").rename(
        folder / f"W39_1998.09.19_Segm{suffix}"
    )
    (folder / "readme.txt").write_text("x")
    for labelled in (True, False):
        challenge = BraTS(modalities=modalities)
        [case] = challenge.cases(tmp_path, labelled=labelled)
        assert case.label == label
        assert set(np.unique(challenge.load(case).label)) == {0, 1, 2}


@pytest.mark.parametrize("others", [["x_mask"], ["x_Segm", "y_Segm"], ["x_Segm", "y"], ["xSegm"]])
def test_no_other_file_is_taken_for_a_label(tmp_path, write_case, others):
    folder = write_case(tmp_path, "BraTS20_Training_355", FOUR)
    label = folder / "BraTS20_Training_355_seg.nii.gz"
    for other in others:
        shutil.copy(label, folder / f"{other}.nii.gz")
    assert BraTS().cases(tmp_path, labelled=True)[0].label == label
    label.unlink()
    with pytest.raises(ManyErrors, match="no label: expected BraTS20_Training_355_seg.nii.gz"):
        BraTS().cases(tmp_path, labelled=True)


def test_what_names_do_not_tell_is_not_guessed(tmp_path, write_case):
    write_case(tmp_path / "gli", "BraTS-GLI-00001-000", GLI, separator="-")
    with pytest.raises(ConfigError, match="set convention to '2023' or '2024'"):
        BraTS().cases(tmp_path / "gli", labelled=True)
    assert BraTS("2023").convention == "2023"
    assert BraTS("2023", "2024").convention == "2024"
    # BraTS endings, but not a BraTS name: whose labels are these?
    write_case(tmp_path / "own", "pat1", FOUR)
    with pytest.raises(DataError, match="set layout to 'plain'"):
        BraTS().cases(tmp_path / "own", labelled=True)
    write_case(tmp_path / "gli", "BraTS2021_00000", FOUR)
    with pytest.raises(ConfigError, match="cases of different layouts"):
        BraTS().cases(tmp_path / "gli", labelled=True)


def test_the_real_folders(shared_data):
    [case] = BraTS().cases(shared_data / "brats2021", labelled=True)
    assert case.id == "BraTS2021_06692"
    [case] = BraTS().cases(shared_data / "brats2021" / case.id, labelled=True)
    assert case.id == "BraTS2021_06692"
    plain = BraTS("plain", "2015", ("flair", "t1ce")).cases(
        shared_data / "brats2015", labelled=True
    )
    assert ids(plain) == ["pat0003", "pat0004", "pat0005", "pat0006"]


@pytest.mark.parametrize("suffix", [".NII.GZ", ".Nii", ".NII", ".nii.GZ"])
def test_endings_are_the_same_in_upper_case(tmp_path, write_case, write_msd, suffix):
    write_case(tmp_path / "a", "BraTS2021_00000", FOUR)
    folder = write_case(tmp_path / "a", "BraTS2021_00001", FOUR)
    zipped = suffix.lower().endswith(".gz")
    for path in list(folder.iterdir()):
        content = path.read_bytes() if zipped else gzip.decompress(path.read_bytes())
        name = path.name.removesuffix(".nii.gz").replace("_t1", "_T1") + suffix
        (folder / name).write_bytes(content)
        path.unlink()
    challenge = BraTS()
    cases = challenge.cases(tmp_path / "a", labelled=True)
    assert ids(cases) == ["BraTS2021_00000", "BraTS2021_00001"]
    one, two = (challenge.load(case) for case in cases)
    np.testing.assert_array_equal(one.image, two.image)
    np.testing.assert_array_equal(one.label, two.label)
    if zipped:
        root = write_msd(tmp_path / "b", ["BRATS_001", "BRATS_002"])
        for kind in ("imagesTr", "labelsTr"):
            path = root / kind / "BRATS_002.nii.gz"
            path.rename(path.with_name("BRATS_002" + suffix))
        assert ids(BraTS().cases(root, labelled=True)) == ["BRATS_001", "BRATS_002"]


def test_of_a_file_that_is_there_twice_it_is_said_which_is_read(
    tmp_path, write_case, write_msd, caplog
):
    folder = write_case(tmp_path / "a", "pat1", ("t1",))
    for name in ("pat1_t1.nii", "pat1_seg.NII.GZ"):
        (folder / name).write_bytes(b"older")
    [case] = BraTS("plain", "2021", ("t1",)).cases(tmp_path / "a", labelled=True)
    assert [case.images[0].name, case.label.name] == ["pat1_t1.nii.gz", "pat1_seg.nii.gz"]
    assert "2 files are passed over because there is another of that name" in caplog.text
    root = write_msd(tmp_path / "b", ["BRATS_001"])
    (root / "imagesTr" / "BRATS_001.nii").write_bytes(b"older")
    (root / "labelsTr" / "BRATS_002.nii.gz").write_bytes(b"alone")
    [case] = BraTS().cases(root, labelled=True)
    assert case.images[0].name == "BRATS_001.nii.gz"
    assert "1 files are passed over" in caplog.text
    assert "1 labels have no image and are passed over, such as that of BRATS_002" in caplog.text


def test_links_that_lead_nowhere_are_faults(tmp_path, write_case, write_msd):
    write_case(tmp_path / "a", "pat1", ("t1",))
    folder = write_case(tmp_path / "a", "pat2", ("t1",))
    for path in list(folder.iterdir()):
        path.unlink()
        path.symlink_to(tmp_path / "gone" / path.name)
    (tmp_path / "a" / "pat3").symlink_to(tmp_path / "gone" / "pat3")
    (tmp_path / "a" / "notes.txt").symlink_to(tmp_path / "gone" / "notes.txt")
    errors = []
    challenge = BraTS("plain", "2021", ("t1",))
    assert ids(challenge.cases(tmp_path / "a", labelled=True, errors=errors)) == ["pat1"]
    assert [case for case, _ in errors] == ["pat2", "pat3"]
    assert all(f"is a link to {tmp_path}/gone" in why for _, why in errors)
    root = write_msd(tmp_path / "b", ["BRATS_001", "BRATS_002"])
    (root / "labelsTr" / "BRATS_002.nii.gz").unlink()
    (root / "labelsTr" / "BRATS_002.nii.gz").symlink_to("gone")
    with pytest.raises(ManyErrors, match="BRATS_002: .*BRATS_002.nii.gz is a link to gone"):
        BraTS().cases(root, labelled=True)


def test_folders_with_images_that_are_no_case_are_said(tmp_path, write_case, caplog):
    write_case(tmp_path, "pat1", ("t1",))
    challenge = BraTS("plain", "2021", ("t1",))
    (tmp_path / "notes").mkdir()
    challenge.cases(tmp_path, labelled=True)
    assert not caplog.text
    (tmp_path / "pat2").mkdir()
    (tmp_path / "pat2" / "t1.nii.gz").write_bytes(b"x")
    assert ids(challenge.cases(tmp_path, labelled=True)) == ["pat1"]
    assert "1 folders hold NIfTI files that are not named as a case's are" in caplog.text
    assert str(tmp_path / "pat2") in caplog.text


def test_sessions_are_of_one_patient_in_every_layout(tmp_path, write_case, write_msd):
    names = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1", "sub-02"]
    for name in names:
        write_case(tmp_path / "a", name, ("t1",))
    write_msd(tmp_path / "b", names)
    (tmp_path / "b" / "imagesTr" / "BRATS_001.nii.gz").write_bytes(b"x")
    for challenge, root in ((BraTS("plain", "2021", ("t1",)), "a"), (BraTS("msd"), "b")):
        cases = challenge.cases(tmp_path / root, labelled=True, errors=[])
        assert {case.id: case.patient for case in cases} == {name: name[:6] for name in names}
