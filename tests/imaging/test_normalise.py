import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging import normalise

CT = {"mean": 40.0, "sd": 20.0, "percentile_00_5": -60.0, "percentile_99_5": 160.0}


@pytest.fixture
def volume(rng):
    return rng.normal(50, 200, (6, 7, 8)).astype(np.float32)


def everywhere(volume):
    return np.ones(volume.shape, bool)


def test_ct_is_clipped_to_the_foregrounds_percentiles_and_scaled_by_its_mean_and_sd(volume):
    volume[0, 0, :3] = -1000, 40, 3000
    found, note = normalise.normalise(volume, everywhere(volume), "ct", CT)
    np.testing.assert_allclose(found[0, 0, :3], [-5, 0, 6])
    assert note == "" and found.min() == -5 and found.max() == 6 and found.dtype == np.float32


def test_ct_is_the_same_for_two_images_that_differ_elsewhere(volume):
    """Hounsfield units mean the same in every image; a z-score would forget them."""
    other = volume.copy()
    other[3:] += 500
    one, two = (normalise.normalise(v, everywhere(v), "ct", CT)[0] for v in (volume, other))
    np.testing.assert_array_equal(one[:3], two[:3])


def test_ct_without_statistics_says_so(volume):
    found, note = normalise.normalise(volume, everywhere(volume), "ct")
    assert "without statistics" in note
    assert abs(found.mean()) < 1e-5 and abs(found.std() - 1) < 1e-5


def test_zscores_have_mean_0_and_sd_1_inside_and_0_outside(volume):
    inside = everywhere(volume)
    inside[:2] = False
    found, _ = normalise.normalise(volume, inside, "zscore")
    assert abs(found[inside].mean()) < 1e-5 and abs(found[inside].std() - 1) < 1e-5
    assert not found[~inside].any()
    moved, _ = normalise.normalise(volume * 1e4 + 7, inside, "zscore")
    np.testing.assert_allclose(moved, found, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_one_value_only_becomes_0_with_a_note(value):
    flat = np.full((3, 4, 5), value, np.float32)
    found, note = normalise.normalise(flat, everywhere(flat), "zscore")
    assert not found.any() and "one value" in note


def test_the_others(volume):
    inside = everywhere(volume)
    np.testing.assert_array_equal(normalise.normalise(volume, inside, "nonorm")[0], volume)
    rescaled, _ = normalise.normalise(volume, inside, "rescale_to_0_1")
    assert rescaled.min() == 0 and rescaled.max() == 1
    colours = np.array([[[0, 51, 255]]])
    found, _ = normalise.normalise(colours, everywhere(colours), "rgb_to_0_1")
    np.testing.assert_allclose(found[0, 0], [0, 0.2, 1])
    with pytest.raises(ValueError, match="expects 0 to 255"):
        normalise.normalise(volume, inside, "rgb_to_0_1")


@pytest.mark.parametrize(
    "name,scheme",
    [("CT", "ct"), ("noNorm", "nonorm"), ("T1", "zscore"), ("rgb_to_0_1", "rgb_to_0_1")],
)
def test_a_channels_name_says_its_scheme(name, scheme):
    assert normalise.scheme_of(name) == scheme


@pytest.mark.parametrize("wrong", ["minmax", "T1", "", None, 3])
def test_an_unknown_scheme_is_refused_with_the_known_ones(wrong):
    with pytest.raises(ConfigError, match="known: ct, zscore, nonorm, rescale_to_0_1, rgb_to_0_1"):
        normalise.check_scheme(wrong)
    assert normalise.check_scheme("noNorm") == "nonorm"
