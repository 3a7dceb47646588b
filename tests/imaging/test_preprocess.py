import dataclasses

import nibabel as nib
import numpy as np
import pytest

from crossdim_jax import challenges
from crossdim_jax.imaging import preprocess
from crossdim_jax.imaging.case import Case


@pytest.fixture
def image(rng):
    """Two channels; zero outside a box, negatives inside, and one channel a little smaller."""
    image = np.zeros((9, 10, 11, 2), np.float32)
    image[2:7, 3:9, 1:5] = rng.normal(40, 20, (5, 6, 4, 2))
    image[2, 3, 1, 0] = -7
    image[6, :, :, 1] = 0
    return image


def box_of(image, **kwargs):
    return preprocess.crop_to_inside(preprocess.inside(image)[0], **kwargs)


def zscored(image):
    return preprocess.zscore(image, preprocess.inside(image)[0])


def test_the_crop_is_the_smallest_box_with_everything_in_it(image):
    assert box_of(image) == ((2, 7), (3, 9), (1, 5))
    # Each channel counts, and so do negative values.
    single = np.zeros((5, 5, 5, 2), np.float32)
    single[1, 2, 3, 1], single[4, 2, 0, 0] = -1, 1
    assert box_of(single) == ((1, 5), (2, 3), (0, 4))


def test_a_margin_stays_inside_the_volume(image):
    assert box_of(image, margin=2) == ((0, 9), (1, 10), (0, 7))


def test_an_empty_image_has_no_crop():
    with pytest.raises(ValueError, match="every voxel"):
        box_of(np.zeros((2, 3, 4, 1), np.float32))


def test_zscore_is_over_each_channels_own_voxels_inside(image):
    result = zscored(image)
    assert result.dtype == np.float32
    for channel in range(2):
        inside = image[..., channel] != 0
        assert not result[..., channel][~inside].any()
        values = result[..., channel][inside].astype(np.float64)
        assert values.mean() == pytest.approx(0, abs=1e-6)
        assert values.std() == pytest.approx(1, abs=1e-6)


def head(rng, shape=(20, 24, 22), radius=8):
    """A ball of positive values in a volume of zeros, and the ball."""
    grid = np.stack(np.indices(shape), -1) - np.array(shape) / 2
    ball = (grid**2).sum(-1) <= radius**2
    return np.where(ball, rng.normal(50, 5, shape), 0).astype(np.float32), ball


def case_of(*channels, label=None):
    return Case("a", "a", np.stack(channels, -1), label, (1.0, 1.0, 1.0), geometry=None)


def test_a_zero_within_the_brain_is_a_value_and_no_outside(rng):
    volume, ball = head(rng)
    volume[10, 12, 11] = volume[8:10, 12, 11] = 0
    np.testing.assert_array_equal(preprocess.outside(volume), ~ball)
    prepared = preprocess.brain(case_of(volume - 0, volume))
    centre = prepared.image[tuple(np.array(prepared.image.shape[:3]) // 2)]
    assert (centre < -5).all() and prepared.note == ""
    values = prepared.image[prepared.image != 0]
    assert values.mean() == pytest.approx(0, abs=1e-5)


def test_a_value_of_zero_in_an_image_that_is_not_masked_lies_between_its_neighbours(rng):
    """CT: air -1024, tissue about 0 HU, which touches the border."""
    _, ball = head(rng, radius=11)
    hu = np.where(ball, rng.integers(-5, 6, ball.shape), -1024).astype(np.float32)
    prepared = preprocess.brain(case_of(hu, hu), ("ct", "again"))
    assert prepared.image.shape[:3] == hu.shape and prepared.bbox[0] == (0, hu.shape[0])
    below, at, above = (prepared.image[..., 0][hu == value].mean() for value in (-1, 0, 1))
    assert below < at < above
    assert prepared.note.startswith("ct, again: not masked")
    np.testing.assert_allclose(prepared.image.mean((0, 1, 2)), 0, atol=1e-5)
    # Tissue alone, to all edges: some of them are 0 by chance.
    assert preprocess.outside(rng.integers(-5, 6, ball.shape)) is None
    assert preprocess.outside(rng.integers(-1, 2, ball.shape)) is None


@pytest.mark.parametrize("radius", [8, 11])
@pytest.mark.parametrize("shape", [(20, 24, 22), (5, 24, 22), (1, 24, 22)])
def test_a_masked_image_is_known_as_one_however_it_is_cropped(rng, shape, radius):
    volume, ball = head(rng, shape, radius)
    [(z0, z1), (y0, y1), (x0, x1)] = box_of(volume[..., None])
    for cut in (volume, volume[z0:z1, y0:y1, x0:x1], volume[:, shape[1] // 2 :]):
        out = preprocess.outside(cut)
        np.testing.assert_array_equal(out, cut == 0)
    assert preprocess.outside(volume - 0.7) is None


def test_a_modality_that_is_cut_off_or_not_masked_leaves_the_others_alone(rng):
    volume, ball = head(rng)
    cut = volume.copy()
    cut[:9] = 0
    prepared = preprocess.brain(case_of(volume, cut))
    alone = preprocess.brain(case_of(volume))
    np.testing.assert_array_equal(prepared.image[..., :1], alone.image)
    within = prepared.image[..., 1][prepared.image[..., 1] != 0]
    assert within.std() == pytest.approx(1, abs=1e-4) and prepared.note == ""
    mixed = preprocess.brain(case_of(volume, volume - 0.7), ("t1", "t2"))
    assert mixed.note.startswith("t2: not masked")
    inside = mixed.image[..., 0][ball]
    assert inside.mean() == pytest.approx(0, abs=1e-5) and not mixed.image[..., 0][~ball].any()


def test_a_modality_of_one_value_is_said_to_say_nothing(rng):
    volume, _ = head(rng)
    assert preprocess.brain(case_of(volume, volume), ("t1", "t2")).note == ""
    prepared = preprocess.brain(case_of(volume, 7 * (volume != 0)), ("t1", "t2"))
    assert prepared.note == "t2: has one value only, which says nothing; it is 0"


def test_what_is_no_number_is_refused(rng):
    volume, _ = head(rng)
    volume[10, 12, 11] = np.nan
    for prepare in (preprocess.brain, lambda case: preprocess.slices(case, (24, 22))):
        with pytest.raises(ValueError, match="1 of the image's .* NaN or infinite"):
            prepare(case_of(volume))


def test_zscore_does_not_know_the_scanners_units(image):
    np.testing.assert_allclose(zscored(image * np.float32(12.5)), zscored(image), atol=1e-5)


@pytest.mark.parametrize("value", [0.0, 3.0, 0.1])
def test_a_constant_channel_becomes_zero(value):
    image = np.zeros((3, 4, 5, 1), np.float32)
    image[1, 1:3, 1:4] = value
    assert not zscored(image).any()


def test_uncrop_undoes_the_crop(image, rng):
    label = np.zeros(image.shape[:3], np.uint8)
    label[2:7, 3:9, 1:5] = rng.integers(0, 5, (5, 6, 4))
    case = Case("a", "a", image, label, (1.0, 2.0, 3.0), geometry=None)
    prepared = preprocess.brain(case)
    assert prepared.image.shape == (5, 6, 4, 2) and prepared.image.dtype == np.float32
    assert prepared.full_shape == (9, 10, 11) and prepared.spacing_mm == (1.0, 2.0, 3.0)
    np.testing.assert_array_equal(
        preprocess.uncrop(prepared.label, prepared.bbox, prepared.full_shape), label
    )
    with pytest.raises(ValueError, match="the crop has shape"):
        preprocess.uncrop(prepared.label[1:], prepared.bbox, prepared.full_shape)


def test_without_a_label_the_image_is_the_same(image):
    label = np.ones(image.shape[:3], np.uint8)
    with_label = Case("a", "a", image, label, (1.0, 1.0, 1.0), geometry=None)
    without = Case("a", "a", image, None, (1.0, 1.0, 1.0), geometry=None)
    np.testing.assert_array_equal(
        preprocess.brain(with_label).image, preprocess.brain(without).image
    )
    assert preprocess.brain(without).label is None


def test_a_prediction_on_a_real_case_lands_on_its_own_grid(tmp_path, shared_data):
    challenge = challenges.get("brats")
    [files] = challenge.cases(shared_data / "brats2021", labelled=True)
    case = challenge.load(files)
    prepared = preprocess.brain(case)
    # int16 with small negatives from resampling: the crop must crop all the same.
    assert case.image.min() < 0
    assert np.prod(prepared.image.shape[:3]) < 0.4 * np.prod(case.image.shape[:3])
    assert prepared.label.any()
    full = preprocess.uncrop(prepared.label, prepared.bbox, prepared.full_shape)
    path = challenge.write(tmp_path / "out.nii.gz", full, case.geometry)
    written, truth, scan = nib.load(path), nib.load(files.label), nib.load(files.images[0])
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), np.asanyarray(truth.dataobj))
    np.testing.assert_array_equal(written.affine, scan.affine)
    assert nib.aff2axcodes(written.affine) == nib.aff2axcodes(scan.affine)


def film(rng, label=True):
    image = rng.normal(50, 9, (3, 20, 33, 2)).astype(np.float32)
    image[1] *= 4
    values = rng.integers(0, 4, (3, 20, 33)).astype(np.uint8) if label else None
    return Case("a", "a", image, values, (1.0, 0.5, 0.4), None, "2CH")


@pytest.mark.parametrize("statistics,axes", [("slice", (1, 2)), ("volume", (0, 1, 2))])
def test_slices_are_z_scored_over_all_pixels(rng, statistics, axes):
    prepared = preprocess.slices(film(rng), (20, 33), statistics=statistics)
    np.testing.assert_allclose(prepared.image.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(prepared.image.std(axes), 1, rtol=1e-4)
    assert prepared.kind == "2CH" and prepared.full_shape == (3, 20, 33)
    constant = dataclasses.replace(film(rng), image=np.full((1, 4, 4, 1), 7.0, np.float32))
    assert not preprocess.slices(constant, (20, 33), statistics=statistics).image.any()


def test_slices_look_the_same_with_and_without_a_label(rng):
    one, other = film(rng), film(np.random.default_rng(0), label=False)
    other.image = one.image
    without = preprocess.slices(other, (32, 64))
    np.testing.assert_array_equal(preprocess.slices(one, (32, 64)).image, without.image)
    assert without.label is None
