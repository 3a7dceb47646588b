"""The stem's identities: what each policy promises about which input."""

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.channels import adapt, draw, draws


@pytest.fixture
def kernel(rng):
    return rng.normal(size=(3, 3, 3, 8)).astype(np.float32)


def response(kernel, n, grey):
    """The stem's sum at one place for a grey patch (3, 3) in n equal channels."""
    patch = np.repeat(grey[..., None], n, axis=-1)
    return np.einsum("hwi,hwio->o", patch, kernel)


@pytest.mark.parametrize(
    ("policy", "n", "exact"),
    [
        *(("gray", n, True) for n in (1, 2, 3, 4, 16)),
        ("sum", 1, True),
        ("released", 1, True),
        *(("tile", n, n % 3 == 0) for n in (1, 2, 3, 4, 6, 12, 16)),
    ],
)
def test_grey_input(policy, n, exact, kernel, rng):
    grey = rng.normal(size=(3, 3)).astype(np.float32)
    adapted = adapt(kernel, n, policy)
    assert adapted.shape == (3, 3, n, 8) and adapted.dtype == np.float32
    found, expected = response(adapted, n, grey), response(kernel, 3, grey)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-5) == exact


def test_tile_takes_the_channels_in_turn(kernel):
    adapted = adapt(kernel, 4, "tile")
    for channel, origin in enumerate([0, 1, 2, 0]):
        np.testing.assert_allclose(adapted[:, :, channel], kernel[:, :, origin] * 0.75, rtol=1e-6)


@pytest.mark.parametrize("policy", ["tile", "gray", "sum", "released"])
def test_three_channels_are_untouched(policy, kernel):
    np.testing.assert_array_equal(adapt(kernel, 3, policy), kernel)


def test_sum_is_for_one_channel_only(kernel):
    with pytest.raises(WeightsError, match="for 1 input channel, found 4"):
        adapt(kernel, 4, "sum")


@pytest.mark.parametrize(
    ("policy", "n", "expected"),
    [("reinit", 3, True), ("reinit", 16, True), ("tile", 16, False)]
    + [("released", n, n not in (1, 3)) for n in (1, 2, 3, 4, 16)],
)
def test_which_policies_draw(policy, n, expected):
    assert draws(policy, n) == expected


def test_reinit_is_he_normal_with_the_fan_in_of_the_final_kernel():
    kernel = draw((3, 3, 3, 16, 512), "reinit", seed=0)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (27 * 16)), rel=0.01)
    assert abs(kernel.mean()) < 1e-3


def test_released_is_unscaled():
    assert draw((3, 3, 3, 16, 32), "released", seed=0).std() == pytest.approx(1, rel=0.02)


def test_draws_follow_their_seed():
    first, again, other = (draw((3, 3, 4, 8), "reinit", seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_unknown_policy_lists_the_known_ones(kernel):
    with pytest.raises(WeightsError, match="'grey'.*tile, gray, sum, reinit, released"):
        adapt(kernel, 4, "grey")


@pytest.mark.parametrize("policy", ["tile", "gray", "sum", "released"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stem_of_one_channel_is_shared_by_equal_ones(n, policy, kernel, rng):
    grey = rng.normal(size=(3, 3)).astype(np.float32)
    own = kernel[:, :, :1]
    found = response(adapt(own, n, policy), n, grey)
    np.testing.assert_allclose(found, response(own, 1, grey), rtol=1e-5, atol=1e-6)


def test_two_and_four_channels_follow_the_same_rules(kernel, rng):
    grey, own = rng.normal(size=(3, 3)).astype(np.float32), kernel[:, :, :2]
    for n, policy in ((4, "tile"), (3, "gray"), (1, "sum")):
        found = response(adapt(own, n, policy), n, grey)
        np.testing.assert_allclose(found, response(own, 2, grey), rtol=1e-5, atol=1e-5)
