"""The encoder: channel counts, parameter counts, both ranks from one body of code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.models import efficientnet, encoders
from crossdim_jax.models.layers import Conv


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def shapes(variant, nd, **kwargs):
    model = efficientnet.EfficientNet(variant, **kwargs)
    x = jnp.zeros((1, *(64,) * nd, 3))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), x))


# Published classifiers (millions, Tan and Le 2019) less head and classifier, counted from timm:
# total - (1280 w + 2 * 1280) - (1280 + 1) * 1000 at width multiplier 1.
@pytest.mark.parametrize(
    "variant,total,head",
    [("b0", 5_288_548, 1280), ("b1", 7_794_184, 1280), ("b4", 19_341_616, 1792)],
)
def test_parameters_equal_the_published_classifier_less_its_head(variant, total, head):
    last = efficientnet.feature_info(variant)[-1].channels
    without_head = total - (last * head + 2 * head) - (head + 1) * 1000
    assert count(shapes(variant, 2)["params"]) == without_head


@pytest.mark.parametrize(
    "variant,channels",
    [("b0", (32, 24, 40, 112, 320)), ("b4", (48, 32, 56, 160, 448))],
)
def test_features_have_the_published_channels(variant, channels):
    info = efficientnet.feature_info(variant)
    assert tuple(f.channels for f in info) == channels
    assert tuple(f.reduction for f in info) == (2, 4, 8, 16, 32)


@pytest.mark.parametrize("nd", [2, 3])
@pytest.mark.parametrize("variant", list(efficientnet.SCALING))
def test_every_variant_gives_the_features_it_announces(variant, nd):
    model = encoders.build(f"efficientnet_{variant}", drop_path_rate=0.0)
    x = jnp.zeros((1, *(64,) * nd, 3))
    features, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))
    for feature, info in zip(features, efficientnet.feature_info(variant), strict=True):
        assert feature.shape == (1, *(64 // info.reduction,) * nd, info.channels)


def test_names_are_the_same_in_2d_and_3d():
    def names(nd):
        return jax.tree.structure(shapes("b0", nd))

    assert names(2) == names(3)


@pytest.mark.parametrize("norm,collections", [("batch", 2), ("instance", 1), ("group", 1)])
def test_only_batch_norm_keeps_statistics(norm, collections):
    assert len(shapes("b0", 3, norm=norm)) == collections


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_odd_sizes_round_up(padding):
    model = efficientnet.EfficientNet(padding=padding)
    x = jnp.zeros((1, 33, 47, 3))
    features, _ = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))
    assert [f.shape[1:3] for f in features] == [(17, 24), (9, 12), (5, 6), (3, 3), (2, 2)]


def test_paddings_agree_on_odd_sizes_and_differ_on_even_ones(rng):
    """At stride 2, SAME is symmetric for an odd size, and shifted by a voxel for an even one."""
    variables = {"params": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 3, 4)), jnp.float32)}}

    def stem(padding, x):
        return Conv(4, 3, 2, padding).apply(variables, x)

    x = jnp.asarray(rng.normal(size=(1, 33, 47, 3)), jnp.float32)
    np.testing.assert_allclose(stem("same", x), stem("symmetric", x), rtol=1e-5)
    x = x[:, :32, :46]
    assert float(jnp.abs(stem("same", x) - stem("symmetric", x)).max()) > 0.1


def test_stochastic_depth_drops_branches_only_while_training(rng):
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    model = efficientnet.EfficientNet(norm="instance", drop_path_rate=0.9)
    variables = models.init(model, 0, x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def last(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, train=train, rngs=rngs)[3]

    assert jnp.array_equal(last(False, 0), last(False, 1))
    assert not jnp.array_equal(last(True, 0), last(True, 1))


def test_batch_statistics_move_while_training_only(rng):
    x = jnp.asarray(rng.normal(5.0, 1.0, (2, 32, 32, 3)), jnp.float32)
    model = efficientnet.EfficientNet(drop_path_rate=0.0)
    variables = models.init(model, 0, x.shape)
    before = variables["batch_stats"]["bn1"]

    @functools.partial(jax.jit, static_argnums=0)
    def after(train):
        _, updated = model.apply(variables, x, train=train, mutable=["batch_stats"])
        return updated["batch_stats"]["bn1"]

    assert float(before["var"].max()) == 1.0
    assert not jnp.allclose(before["mean"], after(True)["mean"])
    assert jnp.array_equal(before["mean"], after(False)["mean"])


def test_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match="efficientnet_b0.*efficientnet_l2"):
        encoders.build("resnet")
