"""Features that begin at /1, /2 or /4 are taken by every network through the encoder's own list."""

import copy
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from crossdim_jax.models import encoders
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.decoder import SkipDecoder, by_level
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.family import Encoder, EncoderModule, Feature

FIRST = {"toy_1": (1, 2, 2, 2, 2, 2), "toy_2": (2,) * 5, "toy_4": (4, 2, 2, 2)}


class Toy(EncoderModule, kw_only=True):
    """One convolution for each feature, the first with the stride that the features begin at."""

    in_plane: Strides

    def strides(self):
        return self.in_plane

    @nn.compact
    def __call__(self, x, *, train=False):
        features = []
        for i, (stride, depth) in enumerate(
            zip(self.in_plane.in_plane, self.depths(), strict=True)
        ):
            x = Conv(3 + i, 3, stride, depth=depth, ops_mode="lax", name=f"stage_{i}")(x)
            features.append(x)
        return features


@pytest.fixture
def toys(monkeypatch):
    for name, in_plane in FIRST.items():
        count = len(in_plane)
        strides = Strides(name, in_plane, (3,) * count, tuple(range(count)))
        features = [Feature(3 + i, r) for i, r in enumerate(strides.reductions())]
        row = Encoder(
            family="toy",
            build=functools.partial(Toy, in_plane=strides),
            stem="stage_0/kernel",
            norm="batch",
            info=functools.partial(tuple, features),
            strides=functools.partial(copy.copy, strides),
            stage=r"(stage_(\d+))/",
        )
        monkeypatch.setitem(encoders.ENCODERS, name, row)


def output(model, shape):
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape)))


@pytest.mark.parametrize("encoder", FIRST)
@pytest.mark.parametrize(
    ("network", "shape", "options"),
    [
        ("omnianet", (1, 32, 64, 2), {}),
        ("omnianet", (1, 32, 64, 2), {"stem_width": 0, "upsample": "transposed"}),
        ("omnianet", (1, 32, 32, 32, 2), {"norm": "instance"}),
        ("dxnet", (1, 32, 64, 32, 2), {}),
        ("dxnet", (1, 3, 64, 32, 2), {"depth_strides": 1}),
        ("dsnet", (1, 97, 32, 64, 2), {}),
        ("dsnet", (1, 128, 32, 32, 2), {"variant": "released"}),
    ],
    ids=str,
)
def test_every_network_takes_features_that_begin_anywhere(toys, encoder, network, shape, options):
    model = models.build(network, encoder=encoder, ops="lax", **options)
    logits, _ = output(model, shape)
    assert logits.shape == (*shape[:-1], model.out_channels)


def test_every_feature_reaches_the_logits_and_is_read_where_it_lies(toys):
    """A level's first convolution sees its upsampled input and the skips of its resolution."""
    seen = {
        "toy_1": [8 + 7, 256 + 6, 128 + 5, 64 + 4, 32 + 16 + 3],
        "toy_4": [11, 260, 131, 64, 48],
    }
    seen["toy_2"] = [7 + 6, 256 + 5, 128 + 4, 64 + 3, 32 + 16]
    for encoder, channels in seen.items():
        _, tree = output(models.build("dxnet", encoder=encoder, ops="lax"), (1, 32, 32, 32, 2))
        decoder = tree["params"]["decoder"]
        found = [decoder[f"conv_{level}_0"]["conv"]["kernel"].shape[-2] for level in range(5)]
        assert found == channels, encoder


@pytest.mark.parametrize(
    ("stride", "factors"), [(1, [1, 1]), (2, [1, 2]), (4, [2, 2])], ids=["none", "half", "all"]
)
def test_depth_is_doubled_where_it_was_strided_also_at_a_level_without_skip(toys, stride, factors):
    """From /4 to the image are two levels; depth that was halved in between is doubled last."""
    model = models.build("dxnet", encoder="toy_4", depth_strides=(stride, 2, 1, 1), ops="lax")
    logits, tree = output(model, (1, 2 * stride, 32, 32, 2))
    assert logits.shape[1] == 2 * stride
    windows = [tree["params"]["decoder"][f"up_{level}"]["kernel"].shape[0] for level in range(5)]
    assert windows == [1, 1, 2, *factors]


@pytest.mark.parametrize(
    ("encoder", "strides"),
    [("toy_4", (8, 1, 1, 1)), ("toy_4", (3, 1, 1, 1)), ("toy_2", (4, 1, 1, 1, 1))],
)
def test_depth_strides_that_no_decoder_undoes_are_refused(toys, encoder, strides):
    with pytest.raises(ConfigError, match="at most doubles"):
        models.build("dxnet", encoder=encoder, depth_strides=strides)
    with pytest.raises(ConfigError, match="entry 0 is 2, but the stem"):
        models.build("dxnet", encoder="toy_1", depth_strides=(2, 1, 1, 1, 1, 1))


def test_a_level_without_skip_computes_what_one_with_an_empty_skip_does(rng):
    image, fine, coarse = (
        jnp.asarray(rng.normal(size=(1, n, n, c)), jnp.float32) for n, c in ((8, 2), (4, 0), (2, 3))
    )
    decoder = SkipDecoder((4, 3), ops_mode="lax")
    abstract = jax.eval_shape(decoder.init, jax.random.key(0), [image, fine, coarse])
    variables = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), abstract)
    apply = jax.jit(decoder.apply)
    found = apply(variables, by_level([image, coarse], [1, 4]))
    np.testing.assert_array_equal(found, apply(variables, [image, fine, coarse]))


def test_reductions_other_than_powers_of_two_are_refused():
    with pytest.raises(ValueError, match="powers of two"):
        by_level([jnp.zeros((1, 6, 6, 1)), jnp.zeros((1, 2, 2, 1))], [1, 3])
