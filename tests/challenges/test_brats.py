import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.challenges.brats.challenge import CONVENTIONS, BraTS
from crossdim_jax.errors import ConfigError, DataError
from tests.brats_folders import FOUR, plain, rewrite

# The table of the releases, by hand: value -> (in WT, in TC, in ET).
TABLE = {
    "2015": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 0), 4: (1, 1, 1)},
    "2021": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 4: (1, 1, 1)},
    "2023": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 1)},
    "2024": {0: (0, 0, 0), 1: (1, 1, 0), 2: (1, 0, 0), 3: (1, 1, 1), 4: (0, 0, 0)},
    "msd": {0: (0, 0, 0), 1: (1, 0, 0), 2: (1, 1, 0), 3: (1, 1, 1)},
}


@pytest.fixture
def files(tmp_path, write_case):
    write_case(tmp_path, "a", FOUR)
    [case] = plain().cases(tmp_path, labelled=True)
    return case


@pytest.mark.parametrize("convention", TABLE)
def test_label_values_mean_what_the_releases_say(convention):
    challenge = plain(convention)
    values = np.array(sorted(TABLE[convention]), np.uint8)
    assert tuple(values) == CONVENTIONS[convention].values
    targets, weights = challenge.encode(values)
    assert targets.tolist() == [list(TABLE[convention][v]) for v in sorted(TABLE[convention])]
    assert targets.dtype == np.uint8 and challenge.regions == ("WT", "TC", "ET")
    np.testing.assert_array_equal(weights, np.ones(3, np.float32))


@pytest.mark.parametrize("convention", TABLE)
def test_decoding_undoes_encoding(convention, rng):
    challenge = plain(convention, et_min_mm3=0)
    values = np.array([v for v, regions in TABLE[convention].items() if sum(regions) or v == 0])
    label = rng.choice(values, (4, 5, 6)).astype(np.uint8)
    targets, _ = challenge.encode(label)
    decoded = challenge.decode(targets.astype(np.float32), (1, 1, 1))
    assert decoded.dtype == np.uint8
    # Values of the same regions (1 and 3 in 2015) come back as one of them.
    np.testing.assert_array_equal(challenge.encode(decoded)[0], targets)
    if convention != "2015":
        np.testing.assert_array_equal(decoded, label)


@pytest.mark.parametrize(
    ("convention", "written"),
    [("2021", (2, 1, 4)), ("2015", (2, 1, 4)), ("2024", (2, 1, 3)), ("msd", (1, 2, 3))],
)
def test_regions_are_written_in_turn(convention, written):
    challenge = plain(convention, et_min_mm3=0)
    # One voxel for each combination of regions, consistent or not.
    combinations = np.array([[w, t, e] for w in (0, 1) for t in (0, 1) for e in (0, 1)], np.float32)
    whole, core, enhancing = written
    expected = [0, enhancing, core, enhancing, whole, enhancing, core, enhancing]
    label = challenge.decode(combinations.reshape(2, 2, 2, 3), (1, 1, 1))
    assert label.ravel().tolist() == expected


def test_a_small_enhancing_tumour_becomes_core():
    challenge = plain(et_min_mm3=200)
    probabilities = np.zeros((10, 10, 10, 3), np.float32)
    probabilities[:5, :5, :4, 2] = 0.9  # 100 voxels
    assert set(np.unique(challenge.decode(probabilities, (2.0, 1.0, 1.0)))) == {0, 4}
    assert set(np.unique(challenge.decode(probabilities, (1.9, 1.0, 1.0)))) == {0, 1}
    assert set(np.unique(plain(et_min_mm3=0).decode(probabilities, (0.1, 1, 1)))) == {0, 4}


def test_the_threshold():
    probabilities = np.full((1, 1, 1, 3), 0.5, np.float32)
    assert plain().decode(probabilities, (9, 9, 9)).item() == 0
    assert plain().decode(probabilities, (9, 9, 9), threshold=0.4).item() == 4
    with pytest.raises(DataError, match="NaN"):
        plain().decode(probabilities * np.nan, (1, 1, 1))
    with pytest.raises(ValueError, match="have 2 channels"):
        plain().decode(probabilities[..., :2], (1, 1, 1))


def test_a_good_case(files):
    case = plain().load(files)
    assert case.image.shape == (5, 6, 7, 4) and case.image.dtype == np.float32
    assert case.label.shape == (5, 6, 7) and case.label.dtype == np.uint8
    assert case.spacing_mm == (1.0, 1.0, 1.0) and case.geometry.path == files.images[0]
    assert case.id == case.patient == "a"


def test_scalings_and_types_of_the_files_do_not_matter(files):
    expected = plain().load(files)
    rewrite(files.images[1], dtype=np.float64)
    rewrite(files.label, dtype=np.float32)
    found = plain().load(files)
    np.testing.assert_array_equal(found.image, expected.image)
    np.testing.assert_array_equal(found.label, expected.label)
    assert found.image.dtype == np.float32 and found.label.dtype == np.uint8


@pytest.mark.parametrize("which", ["image", "label"])
def test_another_shape_is_refused(files, which):
    path = files.images[2] if which == "image" else files.label
    rewrite(path, np.ones((7, 6, 4), np.uint8))
    with pytest.raises(DataError) as error:
        plain().load(files)
    for part in (str(path), str(files.images[0]), "(7, 6, 4)", "(7, 6, 5)"):
        assert part in str(error.value)


@pytest.mark.parametrize("which", ["image", "label"])
def test_another_affine_is_refused_and_rounding_is_not(files, which):
    path = files.images[3] if which == "image" else files.label
    affine = nib.load(path).affine
    rewrite(path, affine=affine + 5e-4)
    plain().load(files)
    shifted = affine.copy()
    shifted[0, 3] = 17.25
    rewrite(path, affine=shifted)
    with pytest.raises(DataError, match="its affine") as error:
        plain().load(files)
    for part in (str(path), str(files.images[0]), "17.2 mm", "lies somewhere else"):
        assert part in str(error.value)


def test_sheared_axes_are_refused_unless_the_shift_is_accepted(files):
    for path in (*files.images, files.label):
        affine = nib.load(path).affine.copy()
        affine[0, 1] = 0.1
        image = nib.Nifti1Image(np.asanyarray(nib.load(path).dataobj), None)
        image.header.set_sform(affine, 1)
        nib.save(image, path)
    challenge = plain()
    with pytest.raises(DataError, match=f"^{files.images[0]}: its axes are sheared: ") as error:
        challenge.load(files)
    challenge.grid_tolerance_mm = float(str(error.value).rpartition("=")[2])
    case = challenge.load(files)
    np.testing.assert_allclose(case.geometry.affine, affine, atol=1e-6)


def test_a_turned_label_is_refused_unless_the_difference_is_accepted(files):
    affine = nib.load(files.label).affine
    angle = 0.02
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = affine.copy()
    turned[:2, :2] = turn @ affine[:2, :2]
    rewrite(files.label, affine=turned)
    challenge = plain()
    with pytest.raises(DataError, match="farthest voxel 0.156 mm from .*_tolerance_mm=0.16 accept"):
        challenge.load(files)
    challenge.grid_tolerance_mm = 0.16
    assert challenge.load(files).label is not None


def test_a_series_of_volumes_is_no_volume(files):
    rewrite(files.images[1], np.ones((7, 6, 5, 3), np.int16))
    with pytest.raises(
        DataError, match=rf"^{files.images[1]}: has shape \(7, 6, 5, 3\), but one 3"
    ):
        plain().load(files)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_voxels_that_are_no_numbers_are_counted(files, value):
    volume = np.ones((7, 6, 5))
    volume[1:3, 0, 0] = value
    rewrite(files.images[1], volume)
    with pytest.raises(DataError, match="a_t1.nii.gz: 2 of 210 voxels are NaN or infinite"):
        plain().load(files)


def test_an_empty_image_is_refused(files):
    rewrite(files.images[3], np.zeros((7, 6, 5), np.int16))
    with pytest.raises(DataError, match="a_t2.nii.gz: every voxel is zero"):
        plain().load(files)


def test_ranks_must_fit_the_layout(files, tmp_path, write_msd):
    rewrite(files.images[1], np.ones((7, 6, 5, 2), np.int16))
    with pytest.raises(DataError, match="a_t1.nii.gz: has shape .* one 3-D volume is expected"):
        plain().load(files)
    rewrite(files.images[1], np.full((7, 6, 5, 1), 2, np.int16))
    assert plain().load(files).image.shape == (5, 6, 7, 4)

    root = write_msd(tmp_path / "msd", ["BRATS_001"])
    rewrite(root / "imagesTr" / "BRATS_001.nii.gz", np.ones((7, 6, 5), np.int16))
    challenge = BraTS()
    [case] = challenge.cases(root, labelled=True)
    with pytest.raises(DataError, match="BRATS_001.nii.gz: has shape .* one 4-D file"):
        challenge.load(case)


@pytest.mark.parametrize("convention", TABLE)
@pytest.mark.parametrize("value", [3, 4, 5])
def test_labels_outside_the_convention(files, convention, value):
    label = np.zeros((7, 6, 5), np.uint8)
    label[0, :2] = value
    rewrite(files.label, label)
    challenge = plain(convention)
    if value in TABLE[convention]:
        assert (challenge.load(files).label == value).sum() == 10
        return
    with pytest.raises(DataError, match=f"a_seg.nii.gz: holds label {value} .10 voxels.") as error:
        challenge.load(files)
    assert f"convention {convention!r} has only 0, 1, 2" in str(error.value)


def test_a_truncated_file_is_named(files):
    files.images[0].write_bytes(files.images[0].read_bytes()[:-20])
    with pytest.raises(DataError, match="a_flair.nii.gz: .*truncated"):
        plain().load(files)
    files.images[0].unlink()
    with pytest.raises(DataError, match="a_flair.nii.gz: there is no such file"):
        plain().load(files)


def test_written_labels_are_checked_against_the_convention(files, tmp_path):
    case = plain().load(files)
    path = plain().write(tmp_path / "out" / "a.nii.gz", case.label, case.geometry)
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(
        np.asanyarray(image.dataobj), np.asanyarray(nib.load(files.label).dataobj)
    )
    with pytest.raises(DataError, match="b.nii.gz: holds label 3"):
        plain().write(tmp_path / "b.nii.gz", np.full_like(case.label, 3), case.geometry)


def test_scores_of_a_case_and_their_summary(rng):
    challenge = plain()
    truth = np.zeros((9, 9, 9), np.uint8)
    truth[2:6, 2:6, 2:6], truth[3:5, 3:5, 3:5] = 2, 4
    row = challenge.score(truth, truth, (1, 1, 1))
    assert {
        f"{m}_{r}"
        for m in ("dice", "hd95", "sensitivity", "specificity")
        for r in ("WT", "TC", "ET")
    } == set(row)
    assert row["dice_WT"] == 1 and row["hd95_ET"] == 0
    worse = challenge.score(truth, np.where(truth == 4, 2, truth), (1, 1, 1))
    assert worse["dice_WT"] == 1 and worse["dice_ET"] == worse["dice_TC"] == 0
    summary = challenge.summarise([row, worse])
    assert summary["dice_ET"]["mean"] == 0.5 and summary["dice_ET"]["n"] == 2
    # The platform's quirk changes the median but not the mean.
    rows = [{"dice_WT": v} for v in (0.1, 0.2, 0.9)]
    quirk = plain(aggregate="synapse2022").summarise(rows)["dice_WT"]
    clean = challenge.summarise(rows)["dice_WT"]
    assert quirk["mean"] == clean["mean"] and quirk["median"] != clean["median"]


def test_the_fingerprint_tells_what_would_load_differently(tmp_path, write_case):
    prints = [
        json.dumps(challenge.fingerprint())
        for challenge in (
            plain(),
            plain("2015"),
            plain(modalities=("t1", "flair")),
            plain(modalities=("flair", "t1")),
        )
    ]
    assert len(set(prints)) == 4
    assert json.dumps(plain(et_min_mm3=5).fingerprint()) == prints[0]


def test_nothing_is_known_of_an_automatic_layout_before_a_root_is_seen():
    challenge = BraTS()
    for attribute in ("layout", "convention"):
        with pytest.raises(ConfigError, match="not known before `cases`"):
            getattr(challenge, attribute)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"layout": "2022"}, "layout='2022' is unknown; known: auto, 2020, 2021, 2023, msd, plain"),
        (
            {"convention": "2022"},
            "convention='2022' is unknown; known: auto, 2015, 2021, 2023",
        ),
        ({"aggregate": "mean"}, "aggregate='mean' is unknown; known: clean, synapse2022"),
        ({"et_min_mm3": -1}, "et_min_mm3=-1"),
        ({"et_min_mm": 3}, "no setting et_min_mm; known: layout, convention, modalities, et_min"),
    ],
)
def test_settings_that_are_not_known(settings, says):
    with pytest.raises(ConfigError, match=says):
        challenges.get("brats", **settings)


def test_challenges_by_name():
    assert isinstance(challenges.get("brats"), BraTS)
    for name in sorted({*challenges.CHALLENGES} - {"dataset", "dataset_phantom"}):
        assert challenges.get(name).name == name  # the others need a folder
    with pytest.raises(
        ConfigError, match="challenge='camsu' is unknown; known: brats, camus, chaos, dataset"
    ):
        challenges.get("camsu")


def test_golden_scores_on_real_segmentations(shared_data):
    challenge = BraTS()
    [files] = challenge.cases(shared_data / "brats2021", labelled=True)
    case = challenge.load(files)
    prediction = dataclasses.replace(
        files, label=shared_data / "golden" / "brats2021" / "scan-20.nii.gz"
    )
    row = challenge.score(case.label, challenge.load(prediction).label, case.spacing_mm)
    assert row["dice_WT"] == pytest.approx(0.910271, abs=1e-6)
    assert row["hd95_WT"] == pytest.approx(5.099020, abs=1e-6)
    assert row["dice_TC"] == pytest.approx(0.959045, abs=1e-6)
    assert row["hd95_TC"] == 1.0


def test_a_real_case_of_2015(shared_data):
    challenge = plain("2015", ("flair", "t1ce"))
    files = challenge.cases(shared_data / "brats2015", labelled=True)[1]
    case = challenge.load(files)
    flair, label = (np.asanyarray(nib.load(p).dataobj) for p in (files.images[0], files.label))
    np.testing.assert_array_equal(case.image[..., 0].transpose(2, 1, 0), flair)
    np.testing.assert_array_equal(case.label.transpose(2, 1, 0), label)
    assert set(np.unique(case.label)) == {0, 1, 2, 3, 4}
    with pytest.raises(DataError, match="holds label 3"):
        plain("2021", ("flair", "t1ce")).load(files)


def test_layers_are_disjoint_and_fill_the_whole_tumour():
    label = np.array([[[0, 1, 2, 4, 2, 1]]], np.uint8)
    challenge = BraTS(layout="2021")
    found = challenge.layers(label)
    np.testing.assert_array_equal(
        sum(mask.astype(int) for mask, _ in found.values()), challenge.masks(label)[..., 0]
    )
    np.testing.assert_array_equal(found["Enhancing tumour"][0], label == 4)
    red, green, _ = (int(found["Edema"][1][i : i + 2], 16) for i in (1, 3, 5))
    assert green > red  # edema is green
