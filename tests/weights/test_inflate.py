"""The laws of inflation, each on the convolution it is about."""

import jax
import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.inflate import INFLATE, PROFILES, factorise, inflate

MODES = sorted(INFLATE)
SUM_ONE = ["mean", "center", "gaussian"]  # the modes whose taps add up to the 2D kernel
SHAPES = {"full": (3, 3, 4, 6), "depthwise": (5, 5, 1, 4), "even": (4, 4, 4, 2)}


@pytest.fixture(params=SHAPES)
def kernel(request, rng):
    return rng.normal(size=SHAPES[request.param]).astype(np.float32)


def conv(image, kernel, *, depth_padding="VALID", strides=None):
    """(b, *spatial, c) by (*k, in/groups, out), 'same' in the plane."""
    nd = image.ndim - 2
    letters = "DHW"[-nd:]
    plane = [(k // 2, k // 2) for k in kernel.shape[:nd]]
    if nd == 3 and depth_padding == "VALID":
        plane[0] = (0, 0)
    return np.asarray(
        jax.lax.conv_general_dilated(
            image,
            kernel,
            strides or (1,) * nd,
            plane,
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            feature_group_count=image.shape[-1] // kernel.shape[nd],
            precision="highest",
        )
    )


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("mode", sorted(PROFILES))
def test_shape_dtype_and_orientation(mode, kernel):
    """Depth comes first; every tap is a multiple of the 2D kernel, neither turned nor mirrored."""
    inflated = inflate(kernel, 3, mode)
    assert inflated.shape == (3, *kernel.shape)
    assert inflated.dtype == kernel.dtype
    for tap in inflated:
        ratio = tap.sum() / kernel.sum()
        np.testing.assert_allclose(tap, ratio * kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_one_by_one_kernels_are_untouched(mode, rng):
    kernel = rng.normal(size=(1, 1, 8, 4)).astype(np.float32)
    np.testing.assert_array_equal(inflate(kernel, 1, mode)[0], kernel)
    with pytest.raises(ValueError, match="one depth tap"):
        inflate(kernel, 3, mode)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("mode", SUM_ONE)
def test_sum_over_depth_gives_the_2d_kernel_back(mode, depth, kernel):
    np.testing.assert_allclose(inflate(kernel, depth, mode).sum(0), kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_repeat_over_depth_is_mean(depth, kernel):
    repeated = inflate(kernel, depth, "repeat")
    np.testing.assert_array_equal(repeated, np.stack([kernel] * depth))
    np.testing.assert_allclose(repeated / depth, inflate(kernel, depth, "mean"), rtol=1e-6)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("mode", SUM_ONE)
def test_depth_constant_volume_equals_2d_in_the_interior(mode, depth, kernel, rng):
    image = rng.normal(size=(2, 9, 11, 4)).astype(np.float32)
    volume = np.repeat(image[:, None], depth + 3, axis=1)
    expected = conv(image, kernel)
    found = conv(volume, inflate(kernel, depth, mode))
    assert found.shape[1] == 4  # depth - taps + 1: no slice saw the border
    for z in range(found.shape[1]):
        close(found[:, z], expected)


def test_repeat_responds_depth_times_as_strongly(kernel, rng):
    image = rng.normal(size=(1, 9, 11, 4)).astype(np.float32)
    volume = np.repeat(image[:, None], 5, axis=1)
    close(conv(volume, inflate(kernel, 3, "repeat"))[:, 0], 3 * conv(image, kernel))


def test_mean_departs_from_2d_at_the_zero_padded_border(kernel, rng):
    """The law above is about the interior: a test that would pass everywhere proves nothing."""
    image = rng.normal(size=(1, 9, 11, 4)).astype(np.float32)
    volume = np.repeat(image[:, None], 5, axis=1)
    found = conv(volume, inflate(kernel, 3, "mean"), depth_padding="zero")
    close(found[:, 0], conv(image, kernel) * 2 / 3)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", [3, 5])
def test_center_equals_2d_slice_by_slice_on_any_volume(depth, stride, kernel, rng):
    """Any volume, its borders too, at any stride in the plane; depth stride 1."""
    volume = rng.normal(size=(1, 6, 9, 11, 4)).astype(np.float32)
    inflated = inflate(kernel, depth, "center")
    found = conv(volume, inflated, depth_padding="zero", strides=(1, stride, stride))
    assert found.shape[1] == 6
    for z in range(6):
        close(found[:, z], conv(volume[:, z], kernel, strides=(stride, stride)))


def test_center_of_an_even_depth_is_shared_by_the_two_middle_taps(kernel):
    taps = inflate(kernel, 4, "center")
    np.testing.assert_array_equal(taps[1:3], np.stack([kernel / 2] * 2))
    assert not taps[0].any() and not taps[3].any()


@pytest.mark.parametrize("mode", MODES)
def test_one_tap_is_the_2d_kernel_in_every_mode(mode, kernel):
    np.testing.assert_allclose(inflate(kernel, 1, mode)[0], kernel, rtol=1e-7)


@pytest.mark.parametrize("depth", [2, 3, 4, 5, 7])
def test_sqrt_keeps_the_variance_of_uncorrelated_slices(depth, rng):
    kernel = rng.normal(size=(3, 3, 1, 1)).astype(np.float32)
    inflated = inflate(kernel, depth, "sqrt")
    # White noise: the response's variance is the sum of the squared weights.
    assert np.square(inflated).sum() == pytest.approx(np.square(kernel).sum(), rel=1e-6)


@pytest.mark.parametrize("depth", [3, 4, 5, 7])
def test_gaussian_lies_between_center_and_mean(depth):
    taps = inflate(np.ones((3, 3, 1, 1), np.float32), depth, "gaussian")[:, 0, 0, 0, 0]
    np.testing.assert_allclose(taps, taps[::-1], rtol=1e-6)
    rising = np.diff(taps[: (depth + 1) // 2])
    assert (rising > 0).all() and taps.max() > 1 / depth and taps.max() < 1
    # Its sigma: the logarithm falls by 1 / (2 sigma^2) in the first tap from the middle.
    sigma = depth / 4
    middle = (depth - 1) / 2
    first, second = depth // 2, depth // 2 + 1
    fall = np.log(taps[first] / taps[second])
    expected = ((second - middle) ** 2 - (first - middle) ** 2) / (2 * sigma**2)
    assert fall == pytest.approx(expected, rel=1e-4)


def test_acs_gives_each_third_its_orientation(rng):
    """7 channels: 3 axial, 2 coronal, 2 sagittal; all else is zero."""
    kernel = rng.normal(size=(3, 3, 2, 7)).astype(np.float32)
    cube = inflate(kernel, 3, "acs")
    np.testing.assert_array_equal(cube[1, :, :, :, :3], kernel[..., :3])
    np.testing.assert_array_equal(cube[:, 1, :, :, 3:5], kernel[..., 3:5])
    np.testing.assert_array_equal(cube[:, :, 1, :, 5:], kernel[..., 5:])
    assert np.count_nonzero(cube) == np.count_nonzero(kernel)


@pytest.mark.parametrize("size", [3, 4])
def test_acs_thirds_are_one_filter_seen_along_three_axes(size, rng):
    """With the same kernel in every channel, turning the volume exchanges the thirds' responses."""
    kernel = np.repeat(rng.normal(size=(size, size, 2, 1)), 3, axis=-1).astype(np.float32)
    cube = inflate(kernel, size, "acs")
    volume = rng.normal(size=(1, 7, 8, 9, 2)).astype(np.float32)

    def third(volume, index):
        return conv(volume, cube, depth_padding="zero")[..., index]

    axial = third(volume, 0)
    # In the turned volume, (rows, columns) of the axial plane lie along (z, x), then along (z, y).
    close(third(volume.transpose(0, 2, 1, 3, 4), 1).transpose(0, 2, 1, 3), axial)
    close(third(volume.transpose(0, 2, 3, 1, 4), 2).transpose(0, 3, 1, 2), axial)


def test_acs_says_which_depths_it_can_do(rng):
    kernel = rng.normal(size=(5, 5, 1, 6)).astype(np.float32)
    with pytest.raises(WeightsError, match="5 taps along depth .* found 3.*--inflate-at"):
        inflate(kernel, 3, "acs")


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("mode", sorted(PROFILES))
def test_factorised_kernels_multiply_to_the_dense_one(mode, depth, rng):
    kernel = rng.normal(size=(5, 5, 1, 4)).astype(np.float32)
    plane, taps = factorise(kernel, depth, mode)
    assert plane.shape == (1, 5, 5, 1, 4) and taps.shape == (depth, 1, 1, 1, 4)
    assert plane.dtype == taps.dtype == np.float32
    np.testing.assert_allclose(plane * taps, inflate(kernel, depth, mode), rtol=1e-6)


def test_acs_cannot_be_factorised(rng):
    kernel = rng.normal(size=(3, 3, 1, 6)).astype(np.float32)
    with pytest.raises(WeightsError, match="'acs' is no product .* repeat, mean"):
        factorise(kernel, 3, "acs")


def test_unknown_mode_lists_the_known_ones(kernel):
    with pytest.raises(WeightsError, match="'median'.*repeat, mean, center"):
        inflate(kernel, 3, "median")


def test_wrong_rank_is_refused(kernel):
    with pytest.raises(ValueError, match="kernel"):
        inflate(kernel[0], 3, "mean")
