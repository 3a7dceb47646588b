"""The depth options of the 3D encoder, and the decoder that undoes its depth strides."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from crossdim_jax.models import efficientnet, encoders
from crossdim_jax.models.decoder import upsampling
from crossdim_jax.models.efficientnet import EfficientNet
from crossdim_jax.weights.paths import flatten
from tests.models import b0

# Of B0, in the plane: 2, then 1 2 2 2 1 2 1.
STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)


@functools.cache
def abstract(shape=(1, 32, 64, 64, 2), **attributes):
    model = EfficientNet(drop_path_rate=0.0, ops_mode="lax", **attributes)
    features, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape))
    )
    return [f.shape[1:-1] for f in features], {
        path: leaf.shape for path, leaf in flatten(variables["params"]).items()
    }


def test_without_options_depth_is_an_axis_like_the_others():
    sizes, kernels = abstract()
    assert sizes == [(16, 32, 32), (8, 16, 16), (4, 8, 8), (2, 4, 4), (1, 2, 2)]
    assert kernels["blocks_2_0/conv_dw/kernel"] == (5, 5, 5, 1, 144)


@pytest.mark.parametrize(
    "variant,strides,expected",
    [
        ("b0", None, (2, 4, 8, 16, 32)),
        ("b0", 1, (1, 1, 1, 1, 1)),
        ("b0", 2, (2, 4, 8, 16, 32)),
        ("b0", (1,), (1, 1, 1, 1, 1)),
        ("b0", STRIDES, (1, 2, 2, 4, 8)),
        ("x_b3", (1, 2, 1, 1, 2, 1, 1, 1), (1, 2, 2, 4, 4)),  # its first stage has the stride
    ],
)
def test_depth_strides_reduce_depth_alone(variant, strides, expected):
    assert encoders.depth_reductions(f"efficientnet_{variant}", strides) == expected
    sizes, _ = abstract(variant=variant, depth_strides=strides)
    assert [s[0] for s in sizes] == [32 // r for r in expected]
    assert [s[1] for s in sizes] == [32, 16, 8, 4, 2]


def test_depth_kernels_say_the_taps_of_the_stem_and_each_stage():
    _, kernels = abstract(depth_kernels=(1, 1, 2, 3, 4, 5, 1, 3))
    assert kernels["conv_stem/kernel"][:3] == (1, 3, 3)
    taps = [kernels[f"blocks_{s}_0/conv_dw/kernel"][:3] for s in range(7)]
    assert taps == [(1, 3, 3), (2, 3, 3), (3, 5, 5), (4, 3, 3), (5, 5, 5), (1, 5, 5), (3, 3, 3)]
    pointwise = [shape for path, shape in kernels.items() if "conv_pw" in path or "/se/" in path]
    assert all(shape[:3] == (1, 1, 1) for shape in pointwise if len(shape) == 5)
    assert abstract(depth_kernels=3) == abstract(depth_kernels=(3,) * 8)


def test_fused_blocks_and_the_folding_convolution_have_depth_kernels_too():
    _, fused = abstract(variant="v2_b0", depth_kernels=1)
    assert fused["blocks_0_0/conv/kernel"][:3] == fused["blocks_1_0/conv_exp/kernel"][:3]
    assert fused["blocks_1_0/conv_exp/kernel"][:3] == (1, 3, 3)
    _, folding = abstract(variant="x_b3", depth_kernels=1)
    assert folding["blocks_0_0/conv_s2d/kernel"][:3] == (1, 2, 2)


def test_factorised_gives_depthwise_kernels_with_depth_a_filter_of_their_own():
    _, kernels = abstract(factorised=True, depth_kernels=(3, 1, 3, 5, 3, 3, 3, 3))
    filters = {path: shape for path, shape in kernels.items() if path.endswith("depth_kernel")}
    assert len(filters) == 15 and not any("blocks_0" in path for path in filters)
    assert filters["blocks_2_0/conv_dw/depth_kernel"] == (5, 1, 1, 1, 144)
    assert kernels["blocks_2_0/conv_dw/kernel"] == (1, 5, 5, 1, 144)
    assert kernels["conv_stem/kernel"][:3] == (3, 3, 3)


def test_2d_does_not_listen_to_depth():
    said = {"depth_kernels": 1, "depth_strides": 1, "depth_padding": "edge", "factorised": True}
    assert abstract((1, 64, 64, 2), **said) == abstract((1, 64, 64, 2))


@pytest.mark.parametrize(
    "wrong,message",
    [
        ({"depth_kernels": (3, 3)}, "found 2 entries, expected one, or 8 .* 7 stages"),
        ({"depth_strides": (1,) * 7}, "found 7 entries"),
        ({"depth_kernels": 0}, "at least 1"),
        ({"depth_strides": (2, 2, 1, 1, 1, 1, 1, 1)}, r"entry 1 is 2, .*\[0, 2, 3, 4, 6\]"),
        ({"depth_padding": "wrap"}, "zero, edge, reflect"),
        ({"depth_strides": (4, 1, 1, 1, 1, 1, 1, 1)}, "at most doubles"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_data_is_read(wrong, message):
    with pytest.raises(ConfigError, match=message):
        models.build("dxnet", **wrong)


def test_one_tap_and_no_stride_is_the_2d_network_on_every_slice(rng):
    """Of a network without squeeze-and-excitation, whose gates see the whole volume."""
    deep = EfficientNet(variant="lite0", depth_kernels=1, depth_strides=1, ops_mode="lax")
    volume = jnp.asarray(rng.normal(size=(1, 3, 40, 33, 2)), jnp.float32)
    variables = models.init(deep, 0, volume.shape)
    flat = jax.tree.map(lambda a: a[0] if a.ndim == 5 else a, variables)
    found = jax.jit(deep.apply)(variables, volume)
    slices = jax.jit(EfficientNet(variant="lite0", ops_mode="lax").apply)(flat, volume[0])
    for feature, expected in zip(found, slices, strict=True):
        scale = float(jnp.abs(expected).max())
        np.testing.assert_allclose(feature[0], expected, rtol=1e-4, atol=1e-5 * scale)


# --- DX-Net -------------------------------------------------------------------------------------


def shape_of_logits(shape, **attributes):
    model = models.build("dxnet", ops="lax", **attributes)
    logits, variables = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros(shape))
    )
    return logits.shape, variables["params"]["decoder"]


def test_the_decoder_undoes_the_depth_strides_there_are():
    shape, decoder = shape_of_logits((1, 8, 32, 64, 4), depth_strides=STRIDES)
    assert shape == (1, 8, 32, 64, 3)
    # Coarsest first; reductions along depth are 1 (full), 1, 2, 2, 4, 8.
    windows = [decoder[f"up_{level}"]["kernel"].shape[:3] for level in range(5)]
    assert windows == [(2, 2, 2), (2, 2, 2), (1, 2, 2), (2, 2, 2), (1, 2, 2)]
    shape, decoder = shape_of_logits((1, 3, 32, 32, 4), depth_strides=1, depth_kernels=(1,))
    assert shape == (1, 3, 32, 32, 3)


@b0.SHORT_AND_WHOLE
def test_strided_dxnet_gives_finite_logits_that_depend_on_every_slice(rng, b0_length):
    strides = STRIDES if b0_length == "whole" else (1, 1, 2, 1, 2, 2)  # with the same reductions
    model = models.build("dxnet", depth_strides=strides, widths=(8,) * 5, ops="lax")
    image = jnp.asarray(rng.normal(size=(1, 8, 32, 32, 2)), jnp.float32)
    variables = models.init(model, 0, image.shape)

    def loss(image):
        return jnp.sum(jnp.square(model.apply(variables, image)[:, 3]))

    value, slope = jax.jit(jax.value_and_grad(loss))(image)
    assert jnp.isfinite(value) and bool((jnp.abs(slope).max((0, 2, 3, 4)) > 0).all())


def test_sizes_must_be_multiples_along_each_axis_of_its_own_reduction():
    assert models.build("dxnet", depth_strides=STRIDES).divisors(3) == (8, 32, 32)
    assert models.build("dxnet").divisors(3) == (32, 32, 32)
    assert models.build("dxnet", depth_strides=1).divisors(2) == (32, 32)
    with pytest.raises(ValueError, match=r"multiples of \(8, 32, 32\), found .* \(16, 64, 32\)"):
        shape_of_logits((1, 12, 40, 32, 4), depth_strides=STRIDES)


def test_features_that_do_not_follow_one_another_are_refused():
    assert upsampling((4, 8, 8), (4, 16, 16)) == (1, 2, 2)
    with pytest.raises(ValueError, match="exactly twice"):
        upsampling((4, 8, 8), (4, 15, 16))


def test_frozen_keeps_the_statistics_of_the_encoder_alone():
    model = models.build("dxnet", norm="frozen", ops="lax")
    image = jnp.zeros((1, 32, 32, 32, 2))
    program = jax.make_jaxpr(
        lambda v: model.apply(
            v, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
        )[1]["batch_stats"]
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    jaxpr = program(variables).jaxpr
    given = {id(v) for v in jaxpr.invars}
    flat = flatten(variables["batch_stats"])
    # What comes out as it went in was not updated.
    kept = [path for path, out in zip(sorted(flat), jaxpr.outvars, strict=True) if id(out) in given]
    assert kept == [path for path in sorted(flat) if path.startswith("encoder/")]
    assert len(kept) == 98 - 2 and len(flat) > len(kept)


def test_list_of_entries_is_taken_as_a_tuple():
    model = models.build("dxnet", depth_strides=list(STRIDES))
    assert model.encoder.depth_strides == STRIDES and hash(model)
    assert encoders.depth_reductions("efficientnet_b0", STRIDES) == (1, 2, 2, 4, 8)
    assert efficientnet.strides("b0").depths(3)[4].window == 3
