"""The encoder: channel counts, parameter counts, both ranks from one body of code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.models import efficientnet, efficientnet_table, encoders
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.layers import Norm
from tests.models import b0


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


@functools.cache
def traced(variant, nd, norm="batch"):
    """The shapes of features and variables for a volume or image of edge 64."""
    options = {"drop_path_rate": 0.0, "ops_mode": "lax"}  # the plain way is traced fastest
    model = efficientnet.EfficientNet(variant=variant, norm=norm, **options)
    x = jnp.zeros((1, *(64,) * nd, 3))
    return jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), x))


def assert_announced(variant, features):
    for feature, info in zip(features, efficientnet.feature_info(variant), strict=True):
        assert feature.shape == (1, *(64 // info.reduction,) * (feature.ndim - 2), info.channels)


FAMILIES = "b0 lite0 es cc_b0_4e b0_gn b0_g8_gn blur_b0 b1_pruned x_b3 v2_b0".split()
SPATIAL = "b0 cc_b0_4e blur_b0 x_b3".split()  # each strides or convolves in a way of its own


def few_in_make_test(few):
    return [
        pytest.param(variant, marks=() if variant in few else pytest.mark.slow)
        for variant in efficientnet_table.ROWS
    ]


# Published classifiers (Tan and Le 2019, 2021), counted from timm, less head and classifier:
# (1280 w + 2 * 1280) + (1280 + 1) * 1000 at width multiplier 1.
@pytest.mark.parametrize(
    "variant,total,head",
    [
        ("b0", 5_288_548, 1280),
        ("b1", 7_794_184, 1280),
        ("b4", 19_341_616, 1792),
        ("b7", 66_347_960, 2560),
        ("lite0", 4_652_008, 1280),
        ("v2_s", 21_458_488, 1280),
    ],
)
def test_parameters_equal_the_published_classifier_less_its_head(variant, total, head):
    last = efficientnet.feature_info(variant)[-1].channels
    without_head = total - (last * head + 2 * head) - (head + 1) * 1000
    assert efficientnet_table.parameters(variant) == without_head
    assert efficientnet_table.network(variant).head == head


@pytest.mark.parametrize("variant", few_in_make_test(FAMILIES))
def test_every_variant_has_the_parameters_and_features_it_announces(variant):
    features, variables = traced(variant, 2, efficientnet_table.ROWS[variant].norm)
    assert count(variables["params"]) == efficientnet_table.parameters(variant)
    assert_announced(variant, features)


@pytest.mark.parametrize(
    "variant,channels",
    [
        ("b0", (32, 24, 40, 112, 320)),
        ("b4", (48, 32, 56, 160, 448)),
        ("v2_s", (24, 48, 64, 160, 256)),
        ("v2_l", (32, 64, 96, 224, 640)),
        ("es", (32, 32, 48, 144, 192)),
    ],
)
def test_features_have_the_published_channels(variant, channels):
    info = efficientnet.feature_info(variant)
    assert tuple(f.channels for f in info) == channels
    assert tuple(f.reduction for f in info) == (2, 4, 8, 16, 32)


@pytest.mark.parametrize("variant", few_in_make_test(SPATIAL))
def test_every_variant_gives_the_features_it_announces_in_3d(variant):
    features, _ = traced(variant, 3)
    assert_announced(variant, features)


def test_v2_rounds_channels_to_the_nearest_multiple_however_far_below():
    # 1.2 * 16 is nearer to 16 than to 24, and less than 0.9 of it.
    first, *_ = efficientnet_table.network("v2_b3").stages
    assert first[0].channels == 16
    assert efficientnet_table.network("b3").stages[0][0].channels == 24


def test_the_names_of_encoders_lead_to_their_rows():
    assert len(efficientnet.ENCODERS) == len(efficientnet_table.ROWS)
    assert efficientnet.ENCODERS.items() <= encoders.ENCODERS.items()
    assert encoders.build("efficientnetv2_s").variant == "v2_s"
    assert encoders.build("efficientnet_b0").variant == "b0"
    assert encoders.norm("efficientnet_b0_gn") == "group"
    reductions = [f.reduction for f in encoders.feature_info("efficientnetv2_s")]
    assert reductions == [2, 4, 8, 16, 32]


def test_names_are_the_same_in_2d_and_3d():
    def names(nd):
        return jax.tree.structure(traced("b0", nd)[1])

    assert names(2) == names(3)


@pytest.mark.parametrize(
    "norm,collections", [("batch", 2), ("frozen", 2), ("instance", 1), ("group", 1)]
)
def test_only_batch_norm_keeps_statistics(norm, collections):
    assert len(traced("b0", 2, norm)[1]) == collections


@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_odd_sizes_round_up(padding):
    model = efficientnet.EfficientNet(padding=padding, ops_mode="lax")
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


@b0.SHORT_AND_WHOLE
def test_stochastic_depth_drops_branches_only_while_training(rng, b0_length):
    x = jnp.asarray(rng.normal(size=(2, 32, 32, 3)), jnp.float32)
    model = efficientnet.EfficientNet(norm="instance", drop_path_rate=0.9, ops_mode="lax")
    variables = models.init(model, 0, x.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def last(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, x, train=train, rngs=rngs)[3]

    assert jnp.array_equal(last(False, 0), last(False, 1))
    assert not jnp.array_equal(last(True, 0), last(True, 1))


@b0.SHORT_AND_WHOLE
def test_batch_statistics_move_while_training_only(rng, b0_length):
    x = jnp.asarray(rng.normal(5.0, 1.0, (2, 32, 32, 3)), jnp.float32)
    model = efficientnet.EfficientNet(drop_path_rate=0.0, ops_mode="lax")
    variables = models.init(model, 0, x.shape)
    before = variables["batch_stats"]["bn1"]

    @functools.partial(jax.jit, static_argnums=0)
    def after(train):
        _, updated = model.apply(variables, x, train=train, mutable=["batch_stats"])
        return updated["batch_stats"]["bn1"]

    assert float(before["var"].max()) == 1.0
    assert not jnp.allclose(before["mean"], after(True)["mean"])
    assert jnp.array_equal(before["mean"], after(False)["mean"])


def test_frozen_statistics_never_move_and_are_always_used(rng):
    x = jnp.asarray(rng.normal(5.0, 1.0, (2, 32, 32, 3)), jnp.float32)
    norm = Norm("frozen", "silu")
    variables = norm.init(jax.random.key(0), x)
    variables = jax.tree.map(lambda a: a + 0.5, variables)
    plain = Norm("batch", "silu").apply(variables, x)
    for train in (False, True):
        y, updated = norm.apply(variables, x, train=train, mutable=["batch_stats"])
        np.testing.assert_array_equal(y, plain)
        assert jax.tree.all(
            jax.tree.map(jnp.array_equal, updated, dict(batch_stats=variables["batch_stats"]))
        )


def test_group_sizes_follow_the_table(rng):
    """Groups of 16 channels: one group's scale does not reach another's output."""
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 32)), jnp.float32)
    norm = Norm("group", group_size=16)
    variables = norm.init(jax.random.key(0), x)
    scaled = x.at[..., 8:16].multiply(100.0)
    before, after = norm.apply(variables, x), norm.apply(variables, scaled)
    changed = jnp.abs(after - before).max((0, 1, 2)) > 1e-3
    assert changed[:16].all() and not changed[16:].any()
    assert efficientnet_table.network("b3_gn").norm_group == 16


def test_unknown_encoder_lists_the_known_ones():
    with pytest.raises(ValueError, match="efficientnet_b0.*efficientnet_l2"):
        encoders.build("resnet")
