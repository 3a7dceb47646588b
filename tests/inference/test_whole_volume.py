"""One volume shared along depth by several devices is the volume on one device."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from crossdim_jax import models, ops
from crossdim_jax.errors import ConfigError
from crossdim_jax.inference.sliding_window import SlidingWindow
from crossdim_jax.inference.whole_volume import WholeVolume, padded_size
from crossdim_jax.models.decoder import SkipDecoder
from crossdim_jax.models.layers import ConvNormAct, require_multiple
from crossdim_jax.runtime import sharding
from tests import toy

MODEL = toy.ToyNet()


def by_four(spatial):
    require_multiple(spatial, (4, 32, 32), "this network")


def from_97_to_144(spatial):
    """As DS-Net."""
    if not 97 <= spatial[0] <= 144:
        raise ValueError(f"depth must be 97 to 144, found {spatial[0]}")


@pytest.fixture(scope="module")
def variables():
    return MODEL.init(jax.random.key(0), np.zeros((1, 8, 8, 8, 1), np.float32))


def whole(depth=1, data=1, **options):
    window = SlidingWindow(MODEL.apply, (8, 32, 32))
    mesh = sharding.make_mesh(data, depth)
    return WholeVolume(MODEL.apply, by_four, mesh, window, **options)


@pytest.mark.parametrize(("data", "depth"), [(1, 4), (2, 2), (1, 3)])
def test_devices_that_share_the_depth_equal_one(variables, rng, data, depth):
    image = rng.normal(size=(13, 30, 33, 1)).astype(np.float32)  # 16 for the network; 18 on three
    one = whole()(variables, image)
    placed = jax.device_put(variables, sharding.replicated(sharding.make_mesh(data, depth)))
    many = whole(depth, data)(placed, image)
    assert many.shape == (13, 30, 33, 2) and many.dtype == np.float32
    np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6)


def test_the_network_sees_the_image_between_zeros(variables, rng):
    image = rng.normal(size=(13, 30, 33, 1)).astype(np.float32)
    padded = np.pad(image, ((1, 2), (1, 1), (15, 16), (0, 0)))
    expected = jax.nn.sigmoid(MODEL.apply(variables, padded[None]))[0, 1:14, 1:31, 15:48]
    np.testing.assert_allclose(whole()(variables, image), expected, rtol=1e-5, atol=1e-6)


def test_flips_are_averaged_over_the_mirrored_image(variables, rng):
    image = rng.normal(size=(8, 32, 32, 1)).astype(np.float32)
    plain = whole()
    expected = (plain(variables, image) + plain(variables, image[:, ::-1])[:, ::-1]) / 2
    np.testing.assert_allclose(whole(flips=(1,))(variables, image), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("check", "spatial", "size"),
    [
        (by_four, (13, 30, 33), (16, 32, 64)),
        (by_four, (16, 32, 64), (16, 32, 64)),
        (from_97_to_144, (20, 1, 1), (97, 32, 32)),
        (from_97_to_144, (131, 1, 1), (131, 32, 32)),
    ],
)
def test_an_image_is_padded_to_the_next_size_that_fits(check, spatial, size):
    assert padded_size(check, spatial) == size


def test_an_image_that_no_size_fits_goes_through_windows_and_it_is_said(variables, rng, capsys):
    with pytest.raises(ConfigError, match=r"\(155, 8, 8\) does not fit whole: .* 97 to 144"):
        padded_size(from_97_to_144, (155, 8, 8))
    image = rng.normal(size=(150, 32, 32, 1)).astype(np.float32)
    predict = dataclasses.replace(whole(), check_size=from_97_to_144)
    found = predict(variables, image)
    np.testing.assert_array_equal(found, predict.window(variables, image))
    assert "97 to 144, found 150; this image is predicted in windows" in capsys.readouterr().err


class SmallNet(nn.Module):
    """The layers of DX-Net, reducing by 4: strided convolutions, InstanceNorm, skips."""

    mode: str

    @nn.compact
    def __call__(self, x, *, train=False):
        full = ConvNormAct(4, name="full", ops_mode=self.mode)(x)
        half = ConvNormAct(6, stride=2, name="half", ops_mode=self.mode)(full)
        low = ConvNormAct(8, stride=2, name="low", ops_mode=self.mode)(half)
        x = SkipDecoder((6, 4), name="decoder", ops_mode=self.mode)([full, half, low])
        return nn.Conv(2, (3, 3, 3), name="head")(x)


def test_the_layers_of_the_networks_on_four_devices_equal_one(rng):
    image = rng.normal(size=(19, 30, 32, 2)).astype(np.float32)  # 20, then 10, 5 slices
    results = []
    for shards in (1, 4):
        model = SmallNet(mode=ops.choose("auto", depth_shards=shards))
        variables = model.init(jax.random.key(0), np.zeros((1, 8, 8, 8, 2), np.float32))
        results.append(predicted(model, by_four, variables, shards, image))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-4, atol=1e-5)


def predicted(model, check_size, variables, depth, image):
    mesh = sharding.make_mesh(1, depth)
    predict = WholeVolume(model.apply, check_size, mesh, SlidingWindow(model.apply, (8, 32, 32)))
    return predict(jax.device_put(variables, sharding.replicated(mesh)), image)


@pytest.mark.slow
# 64 voxels each way: a norm over the two voxels that 32 would leave is all rounding.
@pytest.mark.parametrize(("name", "size"), [("dxnet", (50, 60, 64)), ("dsnet", (98, 60, 64))])
def test_the_networks_on_four_devices_equal_one(rng, name, size):
    image = rng.normal(size=(*size, 2)).astype(np.float32)
    results = []
    for depth in (1, 4):
        mode = ops.choose("auto", depth_shards=depth)
        model = models.build(name, out_channels=3, ops=mode)
        variables = models.init(model, 0, (1, 32 if name == "dxnet" else 128, 32, 32, 2))
        results.append(predicted(model, model.check_size, variables, depth, image))
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-4)
