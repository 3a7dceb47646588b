"""Controls: what they keep of 2D weights, and that nothing else hangs on how they are drawn."""

import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.models import encoders
from crossdim_jax.weights import control
from crossdim_jax.weights.recipe import Recipe
from tests import cut_families
from tests.weight_port import tiny
from weight_port.convert import convert

NAMES = ("efficientnet_tiny", "resnext50_32x4d", "convnext_cut")


@pytest.fixture(autouse=True, scope="module")
def _encoders():
    with tiny.registered(), cut_families.cut():
        yield
    tiny.source.cache_clear()


def arrays(architecture):
    recipe = Recipe(2, 3, encoders.norm(architecture), None, "tile", head=False)
    return convert(tiny.source(architecture), recipe).arrays


def filters(kernel):
    """(numbers, output channels), sorted within each."""
    return np.sort(kernel.reshape(-1, kernel.shape[-1]), axis=0)


@pytest.mark.parametrize("architecture", NAMES)
def test_shuffled_filters_keep_their_numbers_and_all_else_stays(architecture):
    plain = arrays(architecture)
    made = control.apply("shuffled", plain, architecture, 0)
    assert made.keys() == plain.keys()
    for path, array in plain.items():
        if not path.endswith("/kernel"):
            np.testing.assert_array_equal(made[path], array)
            continue
        np.testing.assert_array_equal(filters(made[path]), filters(array))
        assert made[path].dtype == np.float32
        assert array[..., 0].size < 4 or not np.array_equal(made[path], array), path


def test_filters_are_shuffled_each_in_its_own_order():
    """One order for all would keep how filters resemble each other, which is learned."""
    same = np.repeat(np.arange(27, dtype=np.float32).reshape(3, 3, 3, 1), 8, axis=-1)
    kernels = {f"params/encoder/{name}/kernel": same for name in "xy"}
    made = control.apply("shuffled", kernels, NAMES[0], 0).values()
    columns = {tuple(column) for kernel in made for column in kernel.reshape(27, 8).T}
    assert len(columns) == 16


def test_experts_of_a_conditional_convolution_are_kernels_of_their_own():
    experts = np.random.default_rng(0).normal(size=(2, 3, 3, 4, 5)).astype(np.float32)
    made = control.apply("shuffled", {"params/encoder/x/kernel": experts}, NAMES[0], 0)
    for before, after in zip(experts, made["params/encoder/x/kernel"], strict=True):
        np.testing.assert_array_equal(filters(after), filters(before))


@pytest.mark.parametrize("architecture", NAMES)
def test_random_networks_have_timms_scale_and_plain_norms(architecture):
    plain = arrays(architecture)
    made, scaled = control.apply("random", plain, architecture, 0), []
    values = {"scale": 1, "bias": 0, "mean": 0, "var": 1, "gamma": 1e-6}
    for path, array in made.items():
        assert (array.shape, array.dtype) == (plain[path].shape, np.float32)
        leaf = path.rpartition("/")[2]
        if leaf != "kernel":
            np.testing.assert_array_equal(array, np.float32(values[leaf]))
            continue
        k1, k2, c_in, c_out = array.shape
        # In these networks depthwise kernels have one input channel, and grouped ones 16 of 32.
        depthwise = c_in == 1 or (architecture == NAMES[1] and "conv2" in path)
        fan_out = k1 * k2 * (c_in if depthwise else c_out)
        scaled.append(array.ravel() * np.sqrt(fan_out / 2))
        assert scaled[-1].std() == pytest.approx(1, abs=5 / np.sqrt(2 * array.size)), path
    scaled = np.concatenate(scaled)
    assert abs(scaled.mean()) < 5 / np.sqrt(scaled.size)


@pytest.mark.parametrize("kind", control.CONTROLS)
def test_draws_hang_on_seed_and_path_alone(kind):
    plain = arrays(NAMES[0])
    made = control.apply(kind, plain, NAMES[0], 1)
    again = control.apply(kind, dict(reversed(plain.items())), NAMES[0], 1)
    other = control.apply(kind, plain, NAMES[0], 2)
    for path, array in made.items():
        np.testing.assert_array_equal(again[path], array)
    stem = "params/encoder/conv_stem/kernel"
    assert not np.array_equal(made[stem], other[stem])
    alone = control.apply(kind, {stem: plain[stem]}, NAMES[0], 1)
    np.testing.assert_array_equal(alone[stem], made[stem])


def test_an_unknown_control_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'shuffle'.*shuffled, random"):
        control.apply("shuffle", {}, NAMES[0], 0)
