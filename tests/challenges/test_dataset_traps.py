"""Images that go wrong without a word: each is either read right, or refused with what to do."""

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.errors import DataError, ManyErrors
from tests import dataset_folders as folders

SHAPE = (20, 18, 14)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def ball(radius, shape=SHAPE):
    centre = (np.array(shape) - 1) / 2
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return ((places - centre) ** 2).sum(-1) <= radius**2


def turned(degrees):
    """A turn about the last axis."""
    affine, turn = np.eye(4), np.radians(degrees)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    return affine


def one_case(root, image=None, label=None, affine=LPS, label_affine=None, **keys):
    """A data set of one case: a head of noise with a ball of two labels in it."""
    seg = np.where(ball(3), 2, ball(5)).astype(np.uint8)
    noise = np.random.default_rng(0).normal(500, 50, SHAPE) + 40 * seg
    image = noise.astype(np.int16) if image is None else image
    label = seg if label is None else label
    folders.describe(root, **{"channel_names": {"0": "MR"}, "numTraining": 1} | keys)
    folders.save(root / "imagesTr/a_0000.nii.gz", image, affine)
    folders.save(
        root / "labelsTr/a.nii.gz", label, affine if label_affine is None else label_affine
    )
    return root


def loaded(root, **settings):
    ours = challenges.get("dataset", root=str(root), **settings)
    return ours, ours.load(ours.cases(root, labelled=True)[0])


def perfect(ours, case, path):
    """A perfect prediction, written."""
    prepared = ours.prepare(case)
    label = ours.finish(ours.encode(prepared.label)[0], prepared)
    return nib.load(ours.write(path, label, case.geometry))


# --------------------------------------------------------------------------- intensities


@pytest.mark.parametrize("channel", ["MR", "CT"])
def test_zero_is_a_value_like_others_where_the_outside_is_not_zero(tmp_path, channel):
    rng = np.random.default_rng(0)
    image = np.where(ball(7), rng.integers(-5, 6, SHAPE), -1024).astype(np.int16)
    ours, case = loaded(one_case(tmp_path, image, channel_names={"0": channel}))
    prepared = ours.prepare(case)
    assert prepared.image.shape == case.image.shape  # nothing is cropped
    at = {value: prepared.image[case.image == value].mean() for value in (-1, 0, 1)}
    assert at[-1] < at[0] < at[1]


def test_an_outside_that_is_not_zero_is_part_of_the_statistics(tmp_path):
    image = np.where(ball(7), np.random.default_rng(0).normal(1, 1, SHAPE), -0.7)
    ours, case = loaded(one_case(tmp_path, image.astype(np.float32)))
    prepared = ours.prepare(case)
    np.testing.assert_allclose([prepared.image.mean(), prepared.image.std()], [0, 1], atol=1e-4)


def test_a_number_that_is_none_is_refused_by_file_and_channel(tmp_path):
    image = np.ones(SHAPE, np.float32)
    image[3, 4, 5] = np.inf
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz \(channel 0, MR\).*"):
        loaded(one_case(tmp_path, image))


def test_an_image_of_one_value_is_said(tmp_path):
    ours, case = loaded(one_case(tmp_path, np.full(SHAPE, 7, np.int16)))
    assert "MR: has one value only" in ours.prepare(case).note


# --------------------------------------------------------------------------- grids


def test_the_larger_of_two_contradicting_sizes_is_not_lost(tmp_path, caplog):
    """A header with pixdim 1 beside an sform of 1.1."""
    root = one_case(tmp_path, affine=np.diag([1.1, 1.1, 1.1, 1]))
    for path in root.rglob("*.nii.gz"):
        image = nib.load(path)
        made = nib.Nifti1Image(np.asanyarray(image.dataobj), None)
        made.header.set_sform(image.affine, 1)
        made.header["pixdim"][1:4] = 1
        nib.save(made, path)
    ours, case = loaded(root)
    assert case.spacing_mm == (1.1, 1.1, 1.1)
    assert "its sform has voxels of 1.1" in caplog.text
    written = perfect(ours, case, tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.header.get_zooms(), 1.1, rtol=1e-6)
    np.testing.assert_allclose(written.affine, np.diag([1.1, 1.1, 1.1, 1]), rtol=1e-6)


def test_sheared_axes_are_refused_with_the_distance(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.02
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz: its axes are sheared: .* mm from"):
        loaded(one_case(tmp_path, affine=affine))


def test_a_label_a_little_beside_its_image_is_refused_with_the_way_to_accept_it(tmp_path):
    root = one_case(tmp_path, label_affine=turned(0.3) @ LPS)
    with pytest.raises(
        DataError, match=r"a\.nii\.gz: its affine puts .* (0\.\d+) mm .*a_0000"
    ) as e:
        loaded(root)
    assert "config.data.grid_tolerance_mm" in str(e.value)
    ours = challenges.get("dataset", root=str(root))
    ours.grid_tolerance_mm = 0.5
    assert ours.load(ours.cases(root, labelled=True)[0]).label.any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: (a.transpose(2, 1, 0), LPS), r"has shape \(14, 18, 20\), but .*a_0000.* has"),
        (lambda a: (a[:-1], LPS), r"has shape \(19, 18, 14\), but"),
        (lambda a: (a, LPS @ np.diag([-1, 1, 1, 1])), "puts the farthest voxel"),
        (lambda a: (a, turned(30) @ LPS), "lies somewhere else"),
        (lambda a: (a, np.diag([-1.0, -1.0, 2.0, 1.0])), r"voxels of 1 x 1 x 2 mm instead"),
        (lambda a: (np.stack([a, a], -1), LPS), "2 values in each voxel"),
    ],
)
def test_a_label_on_another_grid_is_refused_naming_both_files(tmp_path, change, says):
    root = one_case(tmp_path)
    label, affine = change(np.asarray(nib.load(root / "labelsTr/a.nii.gz").dataobj))
    folders.save(root / "labelsTr/a.nii.gz", label, affine)
    with pytest.raises(DataError, match=rf"labelsTr/a\.nii\.gz: .*{says}"):
        loaded(root)


def test_channels_on_different_grids_are_refused_naming_both_files(tmp_path):
    root = one_case(tmp_path, channel_names={"0": "T1", "1": "T2"})
    folders.save(root / "imagesTr/a_0001.nii.gz", np.ones(SHAPE, np.int16), turned(20) @ LPS)
    with pytest.raises(DataError, match=r"a_0001\.nii\.gz: .*a_0000\.nii\.gz"):
        loaded(root)


def test_a_channel_of_several_volumes_beside_another_is_refused(tmp_path):
    root = one_case(tmp_path, channel_names={"0": "T1", "1": "T2"})
    folders.save(root / "imagesTr/a_0001.nii.gz", np.ones((*SHAPE, 3), np.int16), LPS)
    with pytest.raises(DataError, match="has 4 channels in 2 files, expected 2: T1, T2"):
        loaded(root)


@pytest.mark.parametrize("codes", ["LPS", "LAS", "PSR", "ASL"])
@pytest.mark.parametrize("degrees", [0, 11, 40])
def test_predictions_lie_on_oblique_grids_voxel_by_voxel(tmp_path, codes, degrees):
    root = one_case(tmp_path, affine=turned(degrees) @ np.diag([0.5, 0.6, 3.0, 1]))
    for path in sorted(root.rglob("*.nii.gz")):
        image = nib.load(path)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
        nib.save(image.as_reoriented(turn), path)
    ours, case = loaded(root, spacing_mm=(1.5, 0.5, 0.3))
    written, truth = (
        perfect(ours, case, tmp_path / "p.nii.gz"),
        nib.load(root / "labelsTr/a.nii.gz"),
    )
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(truth.dataobj))
    np.testing.assert_array_equal(written.affine, truth.affine)
    np.testing.assert_array_equal(written.header.get_zooms(), truth.header.get_zooms())


@pytest.mark.parametrize("slices", [1, 3])
def test_volumes_of_few_slices_are_volumes(tmp_path, slices):
    cut = slice(7, 7 + slices)
    seg = np.where(ball(3), 2, ball(5)).astype(np.uint8)[..., cut]
    image = np.random.default_rng(0).integers(1, 9, seg.shape).astype(np.int16)
    ours, case = loaded(one_case(tmp_path, image, seg))
    assert case.image.shape == (slices, *SHAPE[1::-1], 1)
    assert np.array_equal(np.asarray(perfect(ours, case, tmp_path / "p.nii.gz").dataobj), seg)


# --------------------------------------------------------------------------- labels


@pytest.mark.parametrize("dtype", [np.int64, np.float32, np.float64])
def test_labels_of_wide_types_are_read_as_whole_numbers_and_written_small(tmp_path, dtype):
    seg = np.where(ball(3), 2, ball(5))
    label = seg.astype(dtype)
    if dtype is np.float32:
        label = label * np.float32(0.99995)  # as a resampling program leaves them
    root = one_case(tmp_path)
    image = nib.Nifti1Image(label, LPS, dtype=dtype)
    nib.save(image, root / "labelsTr/a.nii.gz")
    ours, case = loaded(root)
    written = perfect(ours, case, tmp_path / "p.nii.gz")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), seg)


@pytest.mark.parametrize("value", [0.5, -1, np.nan, 70000])
def test_values_that_are_no_labels_are_refused_by_name(tmp_path, value):
    label = ball(5).astype(np.float32)
    label[0, 0, 0] = value
    with pytest.raises(DataError, match=r"labelsTr/a\.nii\.gz: 1 voxels are not whole numbers"):
        loaded(one_case(tmp_path, label=label))


def test_all_faulty_cases_of_a_folder_are_told_at_once(tmp_path):
    root = folders.nnunet(tmp_path, ("a", "b", "c", "d"), channels=2)
    (root / "imagesTr/b_0001.nii.gz").unlink()
    (root / "labelsTr/c.nii.gz").unlink()
    (root / "imagesTr/d_0000.nii.gz").unlink()
    (root / "imagesTr/d_0001.nii.gz").unlink()
    with pytest.raises(ManyErrors) as error:
        loaded(root)
    told = dict(error.value.failures)
    assert told.keys() == {"b", "c", "d"}
    assert f"channel 1 (T1) is missing: expected {root / 'imagesTr/b_0001.nii.gz'}" in told["b"]
