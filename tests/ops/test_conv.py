"""Every fast form equals the plain `lax` form, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops

SHAPES = [
    # spatial, window, stride, padding
    ((5, 7, 6), 3, 1, "same"),
    ((5, 7, 6), 3, 2, "same"),
    ((6, 8, 9), 3, 2, "symmetric"),
    ((7, 7, 7), 5, 2, "symmetric"),
    ((8, 6, 7), 5, 1, "same"),
    ((4, 3, 5), 1, 1, "same"),
    ((1, 2, 1), 5, 1, "same"),
    ((9, 6), 3, 2, "same"),
    ((9, 6), 5, 1, "symmetric"),
]


@pytest.fixture
def x64():
    """Float64 arithmetic, where rounding cannot hide a wrong formula."""
    with jax.enable_x64(True):
        yield


def value_and_gradients(f, *args, seed=0):
    y, pull = jax.vjp(f, *args)
    g = jnp.asarray(np.random.default_rng(seed).normal(size=y.shape), y.dtype)
    return [y, *pull(g)]


def assert_same(ours, reference, rtol):
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        scale = float(jnp.abs(b).max()) or 1.0
        assert float(jnp.abs(a - b).max()) <= rtol * scale


# Dense 3D takes another form by shape: large grids, few input channels, several blocks of rows.
DENSE = {
    "scattered taps": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 1, 1), ((1, 1),) * 3),
    "gathered taps": ((2, 9, 10, 11, 2), (3, 3, 3, 2, 8), (1, 1, 1), ((1, 1),) * 3),
    "patches": ((1, 2, 3, 2, 3), (3, 3, 3, 3, 16), (1, 1, 1), ((1, 1), (0, 2), (3, 1))),
    "a row per block, and one left": ((2, 16, 7, 40, 3), (3, 3, 3, 3, 2), (1, 1, 1), ((1, 1),) * 3),
    "several blocks": ((2, 16, 6, 70, 3), (3, 3, 3, 3, 2), (1, 1, 1), ((1, 1),) * 3),
    "even window": ((1, 9, 10, 11, 3), (2, 2, 2, 3, 4), (1, 1, 1), ((1, 0), (0, 1), (1, 1))),
    "no padding": ((1, 9, 10, 11, 4), (3, 2, 3, 4, 4), (1, 1, 1), ((0, 0),) * 3),
    "cropped": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 1, 1), ((-1, 1), (1, -1), (0, -2))),
    "stride 2": ((1, 19, 20, 21, 3), (5, 3, 3, 3, 4), (2, 2, 2), ((2, 1), (0, 1), (1, 1))),
    "stride in the plane": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 2, 2), ((1, 1),) * 3),
    "stride along depth": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (2, 1, 1), ((1, 1),) * 3),
    "stride 3": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (3, 1, 1), ((1, 1),) * 3),
}


@pytest.mark.parametrize("name", DENSE)
def test_every_dense_form_equals_lax(x64, rng, name):
    shape, kernel_shape, strides, padding = DENSE[name]
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in (shape, kernel_shape))

    def form(mode):
        return lambda x, k: ops.conv(x, k, strides=strides, padding=padding, mode=mode)

    reference = value_and_gradients(form("lax"), x, kernel)
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, 1e-10)


@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 1, 2), (3, 1, 1), (4, 2, 1)], ids=str)
def test_depthwise_strides_may_differ_by_axis(x64, rng, strides):
    """A stride larger than the window leaves voxels that nothing sees: their gradient is 0."""
    x, kernel = jnp.asarray(rng.normal(size=(2, 9, 8, 7, 3))), rng.normal(size=(3, 3, 3, 1, 3))

    def form(mode):
        return lambda x, k: ops.depthwise_conv(
            x, k, strides=strides, padding=((1, 1), (0, 1), (1, 0)), mode=mode
        )

    reference = value_and_gradients(form("lax"), x, jnp.asarray(kernel))
    ours = value_and_gradients(form("fast"), x, jnp.asarray(kernel))
    assert_same(ours, reference, 1e-10)


@pytest.mark.parametrize("spatial,window,stride,padding", SHAPES)
@pytest.mark.parametrize("kind,c_in,c_out,batch", [("dense", 3, 4, 2), ("depthwise", 5, 5, 1)])
def test_fast_equals_lax(x64, rng, spatial, window, stride, padding, kind, c_in, c_out, batch):
    nd = len(spatial)
    x = jnp.asarray(rng.normal(size=(batch, *spatial, c_in)))
    groups_in = c_in if kind == "dense" else 1
    kernel = jnp.asarray(rng.normal(size=(*(window,) * nd, groups_in, c_out)))
    strides = (stride,) * nd
    pad = ops.explicit_padding(spatial, kernel.shape[:nd], strides, padding)
    op = ops.conv if kind == "dense" else ops.depthwise_conv

    def form(mode):
        return lambda x, k: op(x, k, strides=strides, padding=pad, mode=mode)

    reference = value_and_gradients(form("lax"), x, kernel)
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, 1e-10)


@pytest.mark.parametrize("transform", ["vmap", "checkpoint", "bf16"])
@pytest.mark.parametrize("kind", ["dense", "depthwise"])
def test_fast_equals_lax_under_transforms(rng, kind, transform):
    dtype = jnp.bfloat16 if transform == "bf16" else jnp.float32
    x = jnp.asarray(rng.normal(size=(2, 2, 6, 5, 4, 8)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 8 if kind == "dense" else 1, 8)), dtype)
    op = ops.conv if kind == "dense" else ops.depthwise_conv

    def form(mode):
        def f(x, k):
            return op(x, k, strides=(2, 2, 2), padding=((0, 1),) * 3, mode=mode)

        if transform == "vmap":
            return jax.vmap(f, (0, None))
        f = jax.checkpoint(f) if transform == "checkpoint" else f
        return lambda x, k: f(x[0], k)

    reference = value_and_gradients(form("lax"), x, kernel)
    rtol = 3e-2 if transform == "bf16" else 1e-5
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, rtol)


@pytest.mark.parametrize("window", [(2, 2, 2), (1, 2, 2), (2, 1, 2)], ids=str)
@pytest.mark.parametrize("spatial", [(3, 4, 5), (3, 4), (1, 1, 2)])
def test_upsample_conv_equals_transposed_convolution(x64, rng, spatial, window):
    x = jnp.asarray(rng.normal(size=(2, *spatial, 3)))
    kernel = jnp.asarray(rng.normal(size=(*window[: len(spatial)], 3, 4)))
    reference = value_and_gradients(ops.upsample_conv_lax, x, kernel)
    assert_same(value_and_gradients(ops.upsample_conv, x, kernel), reference, 1e-10)


@pytest.mark.parametrize("convention,total", [("same", (0, 1)), ("symmetric", (1, 1))])
def test_padding_conventions_differ_at_stride_two(convention, total):
    assert ops.explicit_padding((8,), (3,), (2,), convention) == (total,)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="auto, lax, fast"):
        ops.choose("quick")
    with pytest.raises(ValueError, match="same, symmetric"):
        ops.explicit_padding((8,), (3,), (1,), "valid")


def test_auto_is_fast_on_cpu_only_and_does_not_fold_a_shared_volume():
    assert ops.choose("auto", backend="cpu") == "fast"
    assert ops.choose("auto", backend="cpu", depth_shards=2) == "unfolded"
    assert ops.choose("auto", backend="gpu") == "lax"
    assert ops.choose("lax", backend="cpu") == "lax"
