"""A data set as a challenge: reading, preparing and its way back, targets, scores, files."""

import json
import pickle
import shutil

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from crossdim_jax import challenges
from crossdim_jax.challenges.base import Evaluated
from crossdim_jax.challenges.dataset import phantom
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import volume
from tests import dataset_folders as folders
from tests.dataset_folders import challenge


def first(ours, root):
    return ours.load(ours.cases(root, labelled=True)[0])


def there_and_back(ours, case) -> np.ndarray:
    """A perfect prediction of what the network was shown."""
    prepared = ours.prepare(case)
    return ours.finish(ours.encode(prepared.label)[0], prepared)


# --------------------------------------------------------------------------- images


@pytest.mark.parametrize("codes", ["LPS", "RAS", "PIR"])
def test_a_prediction_lies_on_the_images_own_grid_voxel_by_voxel(tmp_path, codes):
    root = folders.nnunet(tmp_path, ("a",))
    for path in sorted(root.rglob("*.nii.gz")):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
        nib.save(image.as_reoriented(turn), path)
    ours = challenge(root)
    case = first(ours, root)
    path = ours.write(tmp_path / "out.nii.gz", there_and_back(ours, case), case.geometry)
    truth, written = nib.load(root / "labelsTr/a.nii.gz"), nib.load(path)
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_allclose(written.affine, truth.affine)
    assert written.get_data_dtype() == np.uint8


def test_masked_images_are_cropped_and_scored_inside(tmp_path):
    root = folders.nnunet(tmp_path, ("a",), channel_names={"0": "T1"})
    image = np.zeros(folders.SHAPE, np.int16)
    image[1:6, 1:6, 1:5] = folders.image(1, (5, 5, 4))
    image[3, 3, 3] = 0  # within the brain
    folders.save(root / "imagesTr/a_0000.nii.gz", image)
    ours = challenge(root)
    case = first(ours, root)
    prepared = ours.prepare(case)
    assert prepared.bbox == ((1, 5), (1, 6), (1, 6)) and prepared.image.shape == (4, 5, 5, 1)
    np.testing.assert_allclose([prepared.image.mean(), prepared.image.std()], [0, 1], atol=1e-5)
    np.testing.assert_array_equal(there_and_back(ours, case), case.label)


def test_ct_uses_the_statistics_of_the_data_set(tmp_path):
    root = folders.nnunet(tmp_path, ("a",))
    given = {"mean": 100.0, "sd": 50.0, "percentile_00_5": -10.0, "percentile_99_5": 300.0}
    ours = challenge(root, intensities={"0": given})
    case = first(ours, root)
    prepared = ours.prepare(case)
    expected = (case.image.clip(-10, 300) - 100) / 50
    np.testing.assert_allclose(prepared.image, expected, rtol=1e-6)
    assert prepared.note == ""
    assert "CT without statistics of the data set" in challenge(root).prepare(case).note
    with pytest.raises(ConfigError, match=r"channel 0 \(CT\) lack mean"):
        challenge(root, intensities={"CT": {k: v for k, v in given.items() if k != "mean"}})


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        ("noNorm", lambda x: x),
        ("rescale_to_0_1", lambda x: (x - x.min()) / (x.max() - x.min())),
        ("zscore", lambda x: (x - x.mean()) / x.std()),
    ],
)
def test_other_schemes(tmp_path, scheme, expected):
    root = folders.nnunet(tmp_path, ("a",))
    ours = challenge(root, normalisation=scheme)
    case = first(ours, root)
    np.testing.assert_allclose(ours.prepare(case).image, expected(case.image), atol=1e-4)


def test_settings_that_cannot_be(tmp_path):
    root = folders.nnunet(tmp_path, channels=2)
    for settings, expected in (
        (
            {"normalisation": ("zscore", "percentile")},
            "normalisation='percentile' is unknown; known: ct",
        ),
        ({"normalisation": ("zscore",)}, "normalisation has 1 schemes; expected 2"),
        ({"spacing_mm": (1, 1)}, "expected three lengths"),
        ({"spacing_mm": (1, 0, 1)}, "expected three lengths"),
        ({"spacing_mm": (1, 1, 1), "size": (32, 32)}, "a 2D network gets every slice"),
        ({"tolerance_mm": 0}, "tolerance_mm is 0"),
        ({"sides": "no"}, "sides='no' is unknown; known: auto, none"),
        ({"patient": "("}, "no pattern"),
        ({"patient": "a.*"}, "expected a group"),
        ({"outside_root": "False"}, "outside_root is 'False'"),
        ({"size": (3,)}, r"size is \(3,\)"),
        ({"file": "../dataset.json"}, "expected the name of a file in"),
    ):
        with pytest.raises(ConfigError, match=expected):
            challenge(root, **settings)
    with pytest.raises(ConfigError, match=r"config\.data\.root is empty"):
        challenges.get("dataset")


def test_a_file_that_is_wrong_is_named(tmp_path):
    root = folders.nnunet(tmp_path)
    ours = challenge(root)
    labels = root / "labelsTr"
    folders.save(labels / "a.nii.gz", folders.label(1, 7))
    with pytest.raises(
        DataError, match=r"a\.nii\.gz: holds label values 7 \(6 voxels\); .* 0 background, 1 liver"
    ):
        first(ours, root)
    folders.save(labels / "a.nii.gz", folders.label(1), np.diag([-1.0, -1.2, 2.1, 1.0]))
    with pytest.raises(DataError, match=r"labelsTr/a\.nii\.gz: its affine puts the farthest"):
        first(ours, root)
    folders.save(labels / "a.nii.gz", folders.label(1))
    image = folders.image().astype(np.float32)
    image[0, 0, 0] = np.nan
    folders.save(root / "imagesTr/a_0000.nii.gz", image)
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz \(channel 0, CT\): 1 of .* NaN"):
        first(ours, root)


def test_volumes_are_resampled_and_labels_come_back_on_their_own_grid(tmp_path):
    root = folders.nnunet(tmp_path, ("a",))
    case = first(plain := challenge(root), root)
    own = plain.prepare(case)
    for factor in ((1, 1, 1), (2, 2, 2), (1, 3, 2)):
        target = tuple(mm / n for mm, n in zip(case.spacing_mm, factor, strict=True))
        ours = challenge(root, spacing_mm=target)
        prepared = ours.prepare(case)
        expected = tuple(n * f for n, f in zip(own.image.shape[:3], factor, strict=True))
        assert prepared.image.shape[:3] == prepared.label.shape == expected
        np.testing.assert_array_equal(there_and_back(ours, case), case.label)
    assert ours.fingerprint() != plain.fingerprint()
    coarse = challenge(root, spacing_mm=tuple(2 * mm for mm in case.spacing_mm))
    assert there_and_back(coarse, case).shape == case.label.shape


# --------------------------------------------------------------------------- labels


def test_more_than_255_labels_are_written_in_16_bits(tmp_path):
    names = {"background": 0} | {f"n{i}": i for i in range(1, 301)}
    root = folders.nnunet(tmp_path, ("a",), labels=names, values=())
    label = folders.label(255, 300, dtype=np.uint16)
    folders.save(root / "labelsTr/a.nii.gz", label)
    ours = challenge(root)
    case = first(ours, root)
    assert case.label.dtype == np.uint16 and len(ours.classes) == 301
    path = ours.write(tmp_path / "out.nii.gz", there_and_back(ours, case), case.geometry)
    assert nib.load(path).get_data_dtype() == np.uint16
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), label)
    np.testing.assert_array_equal(ours.read_prediction(path)[0], case.label)
    assert set(ours.layers(case.label)) == {"n255", "n300"}  # not 300 in a legend


def test_the_ignore_label_is_neither_predicted_nor_scored(tmp_path):
    named = {"background": 0, "liver": 1, "ignore": 2}
    root = folders.nnunet(tmp_path, ("a",), labels=named)
    ours = challenge(root)
    case = first(ours, root)
    assert ours.classes == ("background", "liver") and 2 in case.label
    prediction = np.where(case.label == 2, 1, case.label).astype(np.uint8)
    row = ours.score(case.label, prediction, case.spacing_mm)
    assert row["dice_liver"] == 1 and row["hd95_mm_liver"] == 0
    assert row["volume_ml_liver"] == row["true_volume_ml_liver"] > 0
    wrong = np.ones_like(prediction)
    assert ours.score(case.label, wrong, case.spacing_mm)["dice_liver"] < 1
    assert set(np.unique(there_and_back(ours, case))) <= {0, 1}


def test_what_is_absent_in_both_is_left_out(tmp_path):
    root = folders.nnunet(tmp_path)
    ours = challenge(root, tolerance_mm=1.5)
    case = first(ours, root)
    only = np.where(case.label == 1, 1, 0).astype(np.uint8)
    absent = ours.score(only, only, case.spacing_mm)
    assert np.isnan([absent[f"{m}_spleen"] for m in ("dice", "nsd", "hd95_mm")]).all()
    missed = ours.score(case.label, only, case.spacing_mm)
    diagonal = np.hypot(np.hypot(6 * 2, 8 * 1.2), 9)
    assert (missed["dice_spleen"], missed["nsd_spleen"]) == (0, 0)
    assert missed["hd95_mm_spleen"] == pytest.approx(diagonal)
    assert missed["true_volume_ml_spleen"] == pytest.approx(6 * 2.4 / 1000)
    statistics = ours.summarise([absent, missed])["dice_spleen"]
    assert (statistics["mean"], statistics["n"], statistics["n_nan"]) == (0, 1, 1)
    files = ours.cases(root, labelled=True)[0]
    (table,) = ours.tables([Evaluated(files, row, tmp_path / "x") for row in (absent, missed)])
    dice = next(row for row in table.rows if row[0] == "Dice (%)")
    assert dice[1:] == (50.0, 2.0)  # liver 1 and 1, spleen 0 where it is scored
    mismatch = ours.mismatch(case.label, case.spacing_mm)
    assert mismatch["dice_liver"] == 0 and mismatch["hd95_mm_liver"] == pytest.approx(diagonal)


def test_sides_refuse_mirroring_and_say_how_to_allow_it(tmp_path):
    named = {"background": 0, "kidney_left": 1, "kidney_right": 2}
    root = folders.nnunet(tmp_path, labels=named)
    ours = challenge(root)
    ours.check_flips((0, 1), 3, "augment.flip")
    with pytest.raises(ConfigError, match=r"kidney_left and kidney_right.*challenge\.sides=none"):
        ours.check_flips((0, 2), 3, "augment.flip")
    challenge(root, sides="none").check_flips((0, 1, 2), 3, "augment.flip")


def test_what_the_cached_case_depends_on_is_in_the_fingerprint(tmp_path):
    root = folders.nnunet(tmp_path / "a")
    made = [
        challenge(root),
        challenge(root, normalisation="zscore"),
        challenge(root, size=(8, 8)),
        challenge(
            folders.nnunet(tmp_path / "b", labels={"background": 0, "spleen": 1, "liver": 2})
        ),
        challenge(folders.nnunet(tmp_path / "c", channel_names={"0": "T1"})),
        challenge(
            folders.nnunet(tmp_path / "d", labels={"background": 0, "liver": 1, "ignore": 2})
        ),
    ]
    prints = {json.dumps(ours.fingerprint()) for ours in made}
    assert len(prints) == len(made)
    moved = challenge(folders.nnunet(tmp_path / "e"))
    assert moved.fingerprint() == made[0].fingerprint()


def test_it_goes_to_worker_processes_and_comes_back_from_a_record(tmp_path):
    root = folders.nnunet(tmp_path)
    ours = challenge(root)
    label = np.array([0, 1, 2])
    ours.encode(label)
    sent = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(sent.encode(label)[0], ours.encode(label)[0])
    assert len(pickle.dumps(ours)) < 20_000
    # The data may be elsewhere when new images are predicted.
    again = challenges.get("dataset", described=ours.description.record())
    assert (again.classes, again.modalities) == (ours.classes, ours.modalities)
    assert again.fingerprint() == ours.fingerprint()
    assert len(again.cases(root / "imagesTr", labelled=False)) == 3


# --------------------------------------------------------------------------- slices and pictures


def test_slices_of_volumes_come_back_at_their_own_size(tmp_path):
    root = folders.nnunet(tmp_path, ("a",))
    ours = challenge(root, size=(24, 27))  # multiples of (8, 9): nothing is lost
    case = first(ours, root)
    prepared = ours.prepare(case)
    assert prepared.image.shape == (6, 24, 27, 1) and prepared.label.shape == (6, 24, 27)
    np.testing.assert_array_equal(prepared.label, case.label.repeat(3, 1).repeat(3, 2))
    np.testing.assert_array_equal(there_and_back(ours, case), case.label)


def test_pictures_are_volumes_of_one_slice(tmp_path):
    root = folders.describe(
        tmp_path, channel_names={"0": "R", "1": "G", "2": "B"}, file_ending=".png"
    )
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    for case in ("a", "b", "c"):
        colours = rng.integers(0, 256, (12, 10, 3)).astype(np.uint8)
        label = (colours[..., 0] > 128).astype(np.uint8)
        Image.fromarray(colours).save(root / "imagesTr" / f"{case}_0000.png")
        Image.fromarray(label).save(root / "labelsTr" / f"{case}.png")
    ours = challenge(root, size=(24, 20), normalisation="rgb_to_0_1")
    case = first(ours, root)
    assert case.image.shape == (1, 12, 10, 3) and not case.geometry.oriented
    prepared = ours.prepare(case)
    assert 0 <= prepared.image.min() and prepared.image.max() <= 1
    path = ours.prediction_path(tmp_path / "out", "a")
    assert path.name == "a.png"
    ours.write(path, there_and_back(ours, case), case.geometry)
    with Image.open(path) as written, Image.open(root / "labelsTr/a.png") as truth:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(truth))
    np.testing.assert_array_equal(ours.read_prediction(path)[0], case.label)


# --------------------------------------------------------------------------- real sets


REAL = {
    "sct_spinal_cord": [("t2s_uncropped", "t2s_uncropped_gmseg_manual"), ("t2", "t2_seg-manual")],
    "msd_spleen2_crop": [("sub-spleen2_ct", "sub-spleen2_ct_seg-manual")],
    "ixi_dlmuse": [("IXI012-HH-1211-T1_ds", "IXI012-HH-1211-T1_ds_DLMUSE")],
    "totalsegmentator": [("example_mr_sm", "example_seg_mr")],
    "pyradiomics": [("brain1_image", "brain1_label")],
}


@pytest.mark.parametrize("name", REAL)
def test_real_images_come_back_as_they_were(shared_data, tmp_path, name):
    ending = ".nrrd" if name == "pyradiomics" else ".nii.gz"
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for image, label in REAL[name]:
        for folder, stem in (("images", image), ("labels", label)):
            shutil.copy(
                shared_data / name / f"{stem}{ending}", tmp_path / folder / (image + ending)
            )
    ours = challenge(tmp_path)
    for files in ours.cases(tmp_path, labelled=True):
        case = ours.load(files)
        prepared = ours.prepare(case)
        label = ours.finish(ours.encode(prepared.label)[0], prepared)
        box = tuple(slice(*bounds) for bounds in prepared.bbox)
        np.testing.assert_array_equal(label[box], case.label[box])
        path = ours.write(tmp_path / "out" / f"{files.id}.nii.gz", label, case.geometry)
        again, geometry = volume.read_label(path)
        np.testing.assert_array_equal(again, label)
        np.testing.assert_allclose(geometry.affine, case.geometry.affine, atol=1e-4)
        assert np.isfinite(prepared.image).all()


# --------------------------------------------------------------------------- phantoms, bad records


def test_phantoms_are_a_data_set_and_only_what_is_missing_is_made(tmp_path):
    root = phantom.ensure(tmp_path / "p", 3, shape=(24, 26, 28))
    ours = challenge(root)
    case = first(ours, root)
    assert case.image.shape == (24, 26, 28, 1) and set(np.unique(case.label)) == {0, 1, 2}
    assert challenges.get("dataset_phantom").classes == ours.classes
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    phantom.ensure(root, 3, shape=(24, 26, 28))
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")}
    phantom.ensure(root, 2, shape=(24, 26, 28))
    assert len(ours.cases(root, labelled=True)) == 2
    with pytest.raises(DataError, match="choose an empty folder"):
        phantom.ensure(folders.nnunet(tmp_path / "own"), 2)
