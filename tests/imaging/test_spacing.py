import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging import spacing

SHAPE = (14, 20, 17)
OTHERS = [(28, 20, 17), (9, 31, 11), (14, 40, 34), (5, 6, 7)]


def smooth(shape):
    """A product of half waves at the centres of voxels of a unit cube, (z, y, x, 1)."""
    axes = [np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in shape]
    return np.einsum("i,j,k->ijk", *axes)[..., None].astype(np.float32)


def resample_probabilities(probabilities, shape, separate=None):
    """The slices that `restore` decodes one by one, together."""
    return np.stack(list(spacing.probability_slices(probabilities, shape, separate)))


def blobs(rng, shape=(7, 6, 5), values=(0, 3, 4, 207)):
    return np.kron(rng.choice(values, shape), np.ones((2, 3, 3))).astype(np.uint8)


@pytest.mark.parametrize("target", [None, (2.0, 0.5, 0.7), (2.01, 0.5, 0.7)])
def test_a_volume_that_needs_no_resampling_is_returned_untouched(rng, target):
    image, label = rng.normal(size=(*SHAPE, 2)).astype(np.float32), blobs(rng)
    for array, resample in (
        (image, spacing.resample_image),
        (label, spacing.resample_label),
    ):
        shape = array.shape[:3]
        new, separate = spacing.grid(shape, (2.0, 0.5, 0.7), target)
        assert new == shape
        assert resample(array, new, separate) is array


@pytest.mark.parametrize("separate", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", OTHERS)
def test_constants_stay(shape, separate):
    image = np.full((*SHAPE, 2), 0.3, np.float32)
    assert np.all(spacing.resample_image(image, shape, separate) == np.float32(0.3))
    np.testing.assert_allclose(resample_probabilities(image, shape, separate), 0.3, rtol=1e-6)
    assert np.all(spacing.resample_label(np.full(SHAPE, 7, np.uint8), shape, separate) == 7)


@pytest.mark.parametrize("shape", OTHERS[:3])
def test_a_smooth_function_is_the_same_function_on_the_other_grid(shape):
    """Edges of the grids coincide: were they centres or corners, it would be shifted."""
    cubic = spacing.resample_image(smooth(SHAPE), shape)
    linear = resample_probabilities(smooth(SHAPE), shape)
    # Splines go flat at the outer half voxel, as the function does; lines miss its curvature.
    np.testing.assert_allclose(cubic, smooth(shape), atol=0.01)
    np.testing.assert_allclose(linear, smooth(shape), atol=0.03)


def test_up_and_down_gives_a_smooth_function_back():
    up = spacing.resample_image(smooth(SHAPE), (28, 40, 34))
    np.testing.assert_allclose(spacing.resample_image(up, SHAPE), smooth(SHAPE), atol=0.01)


def test_a_ramp_keeps_its_place():
    """Voxels are areas: value = place of the centre, on every grid, but for the outer ones."""
    ramp = np.broadcast_to((np.arange(16) + 0.5)[:, None, None, None], (16, 4, 4, 1))
    for length in (32, 8):
        expected = (np.arange(length) + 0.5) * 16 / length
        for resample in (spacing.resample_image, resample_probabilities):
            found = resample(ramp.astype(np.float32), (length, 4, 4))[:, 2, 2, 0]
            inner = slice(length // 8, -length // 8)
            np.testing.assert_allclose(found[inner], expected[inner], atol=0.02)


def test_no_value_leaves_the_range_of_its_channel():
    step = np.zeros((*SHAPE, 2), np.float32)
    step[5:] = (1, -7)
    up = spacing.resample_image(step, (28, 40, 34))
    assert up[..., 0].min() == 0 and up[..., 0].max() == 1
    assert up[..., 1].min() == -7 and up[..., 1].max() == 0


@pytest.mark.parametrize("separate", [None, 0, 1, 2])
@pytest.mark.parametrize("shape", OTHERS)
def test_labels_hold_values_of_the_input_only(rng, shape, separate):
    label = blobs(rng)
    found = spacing.resample_label(label, shape, separate)
    assert found.shape == shape and found.dtype == label.dtype
    assert set(np.unique(found)) <= set(np.unique(label))


def test_labels_are_the_largest_linear_share():
    """Each value's mask is resampled linearly, and the largest wins; a tie goes to the later."""
    rng = np.random.default_rng(1)
    label = rng.integers(0, 4, (6, 9, 8)).astype(np.uint8)
    shape = (9, 7, 11)
    masks = (label[..., None] == np.arange(4)).astype(np.float32)
    shares = resample_probabilities(masks, shape)
    np.testing.assert_array_equal(
        spacing.resample_label(label, shape), 3 - shares[..., ::-1].argmax(-1)
    )


def test_labels_come_back_after_going_finer(rng):
    label = blobs(rng)
    up = spacing.resample_label(label, tuple(2 * n for n in label.shape))
    np.testing.assert_array_equal(spacing.resample_label(up, label.shape), label)


@pytest.mark.parametrize("target", [(1.0, 1.0, 1.0), (3.3, 0.7, 0.41), (9.0, 2.0, 2.0)])
@pytest.mark.parametrize("voxel", [(7.5, 0.5, 0.5), (0.9, 1.1, 4.0), (1.2, 1.2, 1.2)])
def test_the_way_back_has_the_shape_of_the_way_there(rng, voxel, target):
    image = rng.normal(size=(*SHAPE, 1)).astype(np.float32)
    there = spacing.grid(SHAPE, voxel, target)
    probabilities = spacing.resample_image(image, *there)
    back = spacing.separate_axis(target, voxel)
    assert resample_probabilities(probabilities, SHAPE, back).shape == image.shape
    extent = np.multiply(there.shape, target) - np.multiply(SHAPE, voxel)
    assert (np.abs(extent) <= np.multiply(target, 0.5) + 1e-9).all()


def test_probabilities_still_add_up_to_one(rng):
    p = rng.random((5, 6, 7, 3)).astype(np.float32)
    sums = resample_probabilities(p / p.sum(-1, keepdims=True), (8, 9, 4)).sum(-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)


@pytest.mark.parametrize(
    "before,after,expected",
    [
        ((7.5, 0.5, 0.5), (7.5, 0.5, 0.5), 0),
        ((1.0, 1.0, 1.0), (5.0, 1.0, 1.0), 0),  # the one after, where the one before is not
        ((0.7, 0.7, 4.0), (7.0, 0.7, 0.7), 2),  # the one before decides
        ((3.0, 1.0, 1.0), (3.0, 1.0, 1.0), None),  # not more than three times
        ((4.0, 4.0, 1.0), (1.0, 1.0, 1.0), None),  # needles
    ],
)
def test_the_separate_axis_is_the_one_that_is_much_thicker(before, after, expected):
    assert spacing.separate_axis(before, after) == expected


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_thin_structures_are_not_lost_along_the_separate_axis(axis):
    """In one thick slice only: with linear shares, it would fade where slices are moved."""
    label = np.zeros((6, 6, 6), np.uint8)
    place = np.moveaxis(label, axis, 0)
    place[3, 2:4, 2:4] = 1
    for length in (6, 7, 9, 13):
        shape = tuple(length if i == axis else 6 for i in range(3))
        found = np.moveaxis(spacing.resample_label(label, shape, axis), axis, 0)
        holding = found.any((1, 2))
        assert 1 <= holding.sum() <= -(-length // 6)
        assert (found[holding] == place[3]).all()
        image = label[..., None].astype(np.float32)
        for resample in (spacing.resample_image, resample_probabilities):
            same = np.moveaxis(resample(image, shape, axis)[..., 0], axis, 0)
            np.testing.assert_array_equal(same, found)


def test_a_wall_one_voxel_thick_outlives_a_halving():
    label = np.zeros((8, 8, 8), np.uint8)
    label[3] = 1
    assert (spacing.resample_label(label, (4, 8, 8))[1] == 1).all()


def test_a_slip_in_the_spacing_is_refused_before_memory_runs_out():
    with pytest.raises(ConfigError, match="1.03e.* voxels; choose a coarser"):
        spacing.grid((512, 512, 394), (1.0, 1.0, 1.0), (0.01, 0.1, 0.1))
