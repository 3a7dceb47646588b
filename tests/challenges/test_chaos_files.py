"""CHAOS on disk: which folders are cases, which mask belongs to which slice, grey values."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from crossdim_jax.challenges.chaos import layouts, mask_files, phantom
from crossdim_jax.challenges.chaos.challenge import Chaos
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import dicom

KINDS = ("T1DUAL_InPhase", "T1DUAL_OutPhase", "T2SPIR")


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three phantoms of each modality; the third lacks an out-of-phase slice."""
    return phantom.ensure(tmp_path_factory.mktemp("chaos"), 3, size=48)


@pytest.fixture
def root(three, tmp_path):
    """A copy that a test may break."""
    return shutil.copytree(three, tmp_path / "root")


def find(root, labelled=True, **kwargs):
    good, bad = layouts.find(root, labelled=labelled, **kwargs)
    return good, dict(bad)


def test_every_series_is_a_case_of_its_patient(three):
    good, bad = find(three)
    assert not bad
    expected = [f"CT_{n}" for n in (1, 2, 3)]
    expected += [f"MR_{n}_{kind}" for n in (1, 2, 3) for kind in KINDS]
    assert [case.id for case in good] == expected
    by_id = {case.id: case for case in good}
    assert by_id["CT_1"].kind == "CT" and by_id["MR_2_T2SPIR"].kind == "T2SPIR"
    assert by_id["MR_2_T1DUAL_OutPhase"].kind == "T1DUAL"
    assert len({case.patient for case in good}) == 6
    assert {case.patient for case in good if case.id.startswith("MR_2")} == {"MR_2"}
    # Both phases have one set of masks.
    assert by_id["MR_2_T1DUAL_OutPhase"].label == by_id["MR_2_T1DUAL_InPhase"].label


@pytest.mark.parametrize(
    ("below", "number"),
    [("Train_Sets", 12), ("Train_Sets/MR", 9), ("Train_Sets/CT/2", 1),
     ("Train_Sets/MR/1/T1DUAL", 2), ("Train_Sets/MR/1/T1DUAL/DICOM_anon/InPhase", 1)],
)  # fmt: skip
def test_any_folder_on_the_way_is_a_root(three, below, number):
    good, bad = find(three / below)
    assert len(good) == number and not bad
    everything = {case.id: case for case in find(three)[0]}
    assert all(everything[case.id].images == case.images for case in good)


def test_labelled_cases_are_of_the_train_set_and_others_of_the_test_set(root):
    (root / "Test_Sets").mkdir()
    shutil.move(root / "Train_Sets" / "CT" / "3", root / "Test_Sets" / "CT" / "3")
    shutil.rmtree(root / "Test_Sets" / "CT" / "3" / "Ground")
    assert "CT_3" not in [case.id for case in find(root)[0]] and not find(root)[1]
    [case] = find(root, labelled=False)[0]
    assert case.id == "CT_3" and case.label is None


def test_masks_pair_by_name_though_z_falls(three):
    good, _ = find(three)
    case = next(case for case in good if case.id == "CT_1")
    masks = layouts.pair(case.images, case.label)
    assert [path.name for path in masks[:2]] == ["liver_GT_000.png", "liver_GT_001.png"]
    series = dicom.read_header(case.images)
    assert series.geometry.axcodes == "LPI"  # the first file is the highest slice


def test_slices_of_the_other_phase_get_the_masks_of_their_place(root):
    target = root / "Train_Sets" / "MR" / "3" / "T1DUAL"
    case = {c.id: c for c in find(root)[0]}["MR_3_T1DUAL_OutPhase"]
    masks = layouts.pair(case.images, case.label)
    assert len(masks) == 11 and len(list((target / "Ground").iterdir())) == 12
    # In-phase slices are numbered 2, 4, ..., those out of phase at the same places 1, 3, ...
    pairs = [(int(i.stem[-5:]), int(m.stem[-5:])) for i, m in zip(case.images, masks, strict=True)]
    assert all(mask == image + 1 for image, mask in pairs)
    # Without its first slice: by names, all masks would be shifted by one.
    case.images[0].unlink()
    case = {c.id: c for c in find(root)[0]}["MR_3_T1DUAL_OutPhase"]
    assert layouts.pair(case.images, case.label) == masks[1:]


def test_a_slice_of_one_phase_alone_is_left_out(root):
    inner = root / "Train_Sets" / "MR" / "1" / "T1DUAL"
    for path in (inner / "DICOM_anon" / "InPhase" / "IMG-0004-00024.dcm",
                 inner / "Ground" / "IMG-0004-00024.png"):  # fmt: skip
        path.unlink()
    good, bad = find(root)
    case = {c.id: c for c in good}["MR_1_T1DUAL_OutPhase"]
    assert not bad and len(case.images) == 11 and case.images[-1].name == "IMG-0004-00021.dcm"


def test_faulty_cases_are_named_and_the_others_found(root):
    train = root / "Train_Sets"
    (train / "CT" / "1" / "Ground" / "liver_GT_003.png").unlink()
    shutil.rmtree(train / "CT" / "2" / "Ground")
    shutil.rmtree(train / "MR" / "1" / "T2SPIR" / "DICOM_anon")
    (train / "MR" / "1" / "T2SPIR" / "DICOM_anon").mkdir()
    good, bad = find(root)
    assert set(bad) == {"CT_1", "CT_2", "MR_1_T2SPIR"} and len(good) == 9
    assert "holds 15 masks, but" in bad["CT_1"] and "has 16 slices" in bad["CT_1"]
    assert "Ground: there is no such folder" in bad["CT_2"]
    assert "holds no file" in bad["MR_1_T2SPIR"]


def test_what_is_not_in_the_layout_can_be_predicted(three, tmp_path):
    series = tmp_path / "series"
    shutil.copytree(three / "Train_Sets" / "CT" / "1" / "DICOM_anon", series)
    [case] = find(series, labelled=False)[0]
    assert (case.id, case.kind, len(case.images)) == ("series", "CT", 16)
    mr = shutil.copytree(
        three / "Train_Sets" / "MR" / "1" / "T2SPIR" / "DICOM_anon", tmp_path / "m"
    )
    assert find(mr, labelled=False)[0][0].kind == "T2SPIR"
    assert find(mr, labelled=False, kind="T1DUAL")[0][0].kind == "T1DUAL"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.nii.gz")
    for given in (tmp_path, tmp_path / "a.nii.gz"):
        [case] = find(given, labelled=False)[0]
        assert (case.id, case.kind) == ("a", "")
    with pytest.raises(DataError, match="holds no case of CHAOS; expected folders such as"):
        find(series)
    with pytest.raises(DataError, match="no such folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "b.txt").write_text("x")
    with pytest.raises(DataError, match="neither a NIfTI file"):
        find(tmp_path / "b.txt", labelled=False)


def save(path, values):
    Image.fromarray(np.asarray(values)).save(path)
    return path


def read(path, size=(2, 3), any_is_liver=False):
    return mask_files.read([path], size=size, any_is_liver=any_is_liver)[0]


def test_grey_values_name_organs_within_their_ranges(tmp_path):
    grey = np.array([[0, 56, 70], [111, 200, 255]], np.uint8)
    path = save(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(read(path), [[0, 1, 1], [2, 3, 4]])
    np.testing.assert_array_equal(read(path, any_is_liver=True), [[0, 1, 1], [1, 1, 1]])
    one_bit = save(tmp_path / "b.png", grey > 100)
    np.testing.assert_array_equal(read(one_bit, any_is_liver=True), [[0, 0, 0], [1, 1, 1]])


def test_what_is_written_reads_the_same(tmp_path, rng):
    organs = rng.integers(0, 5, (12, 3, 4)).astype(np.uint8)
    paths = mask_files.write(tmp_path / "Results", organs)
    assert paths[10].name == "img010.png"
    assert set(np.unique(Image.open(paths[0]))) <= {0, *mask_files.GREY}
    found = mask_files.files_of(tmp_path / "Results")
    np.testing.assert_array_equal(mask_files.read(found, size=(3, 4), any_is_liver=False), organs)
    mask_files.write(tmp_path / "Results", organs[:2])
    assert len(mask_files.files_of(tmp_path / "Results")) == 2  # none of the longer one is left


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (np.array([[0, 55, 63], [1, 55, 0]], np.uint8), r"grey 1 \(1 pixels\), 55 \(2 pixels\)"),
        (np.zeros((3, 3), np.uint8), "has 3 x 3 pixels, but its slice has 2 x 3"),
        (np.zeros((2, 3, 3), np.uint8), "mode 'RGB'; a mask is 1-bit or 8-bit grey"),
    ],
)
def test_masks_that_mean_nothing_are_refused(tmp_path, values, text):
    with pytest.raises(DataError, match=f"a.png: .*{text}"):
        read(save(tmp_path / "a.png", values))


def test_damaged_masks_are_named(tmp_path, rng):
    path = save(tmp_path / "a.png", rng.integers(0, 255, (90, 90)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="a.png: cannot be read, the file is truncated"):
        read(path, size=(90, 90))
    path.write_text("text")
    with pytest.raises(DataError, match="a.png: is not a PNG file, whatever its name says"):
        read(path)


def test_phantoms_are_kept_replaced_or_refused(tmp_path):
    root = phantom.ensure(tmp_path / "p", 1, size=48)
    marked = root / "Train_Sets" / "CT" / "1" / "Ground" / "liver_GT_000.png"
    before, time = marked.read_bytes(), marked.stat().st_mtime_ns
    phantom.ensure(root, 1, size=48)
    assert marked.stat().st_mtime_ns == time
    phantom.ensure(root, 1, size=56)
    assert marked.read_bytes() != before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(DataError, match="thesis.txt and no phantoms.json"):
        phantom.ensure(tmp_path / "mine", 1)
    with pytest.raises(ConfigError, match="phantoms.size=50"):
        phantom.ensure(tmp_path / "p", 1, size=50)


def test_links_to_folders_are_followed_once(root, tmp_path, caplog):
    store = shutil.move(root / "Train_Sets" / "CT" / "2", tmp_path / "store")
    (root / "Train_Sets" / "CT" / "2").symlink_to(store)
    (root / "Train_Sets" / "CT" / "7").symlink_to(root / "Train_Sets" / "CT" / "1")
    (root / "Train_Sets" / "CT" / "8").symlink_to(tmp_path / "nowhere")
    (root / "Train_Sets" / "MR" / "up").symlink_to(root)
    good, bad = find(root)
    assert len(good) == 12 and not bad and "CT_2" in [case.id for case in good]
    assert "CT/7: is a second way" in caplog.text and "CT/8: is a link to nothing" in caplog.text


def test_links_to_nothing_in_a_case_are_named(root, tmp_path):
    train = root / "Train_Sets"
    for folder in (train / "CT" / "1", train / "MR" / "1" / "T2SPIR"):
        shutil.rmtree(folder / "DICOM_anon")
        (folder / "DICOM_anon").symlink_to(tmp_path / "nowhere")
    shutil.rmtree(train / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "OutPhase")
    (train / "MR" / "2" / "T1DUAL" / "DICOM_anon" / "OutPhase").symlink_to(tmp_path / "nowhere")
    slice_ = next((train / "CT" / "3" / "DICOM_anon").iterdir())
    slice_.unlink()
    slice_.symlink_to(tmp_path / "nowhere")
    good, bad = find(root)
    assert set(bad) == {"CT_1", "CT_3", "MR_1_T2SPIR", "MR_2_T1DUAL_OutPhase"} and len(good) == 8
    assert f"{slice_.name}: is a link to nothing" in bad["CT_3"]


def test_other_files_beside_masks_and_slices_are_passed_over(root):
    folder = root / "Train_Sets" / "CT" / "1"
    for name in ("Ground/Thumbs.db", "Ground/notes.txt", "DICOM_anon/README", "Ground/.a.png"):
        (folder / name).write_text("x")
    (folder / "Ground" / "liver_GT_000.png").rename(folder / "Ground" / "liver_GT_000.PNG")
    good, bad = find(root)
    assert len(good) == 12 and not bad


def test_volumes_are_told_by_their_suffix_in_any_case_and_have_one_name(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    for name in ("a.nii.gz", "b.nii"):
        nib.save(image, tmp_path / name)
    (tmp_path / "a.nii.gz").rename(tmp_path / "a.NII.GZ")
    (tmp_path / "c.nii").mkdir()
    good, _ = find(tmp_path, labelled=False)
    assert [case.id for case in good] == ["a", "b"]
    assert Chaos((4, 4)).load(good[0]).image.shape == (4, 4, 4, 1)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match="2 files would be the case 'a': .*a.NII.GZ.*a.nii"):
        find(tmp_path, labelled=False)
