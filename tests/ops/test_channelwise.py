"""Biases and factors of channels in bfloat16 have the gradients of float64, up to rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops
from crossdim_jax.models.conv import Conv, DepthUpConv
from crossdim_jax.models.layers import SqueezeExcite


def gradient(function, x, g):
    """Of `sum(function(bias, x) * g)` at bias 0, float32."""
    like = jnp.zeros((g.shape[-1],), jnp.promote_types(x.dtype, jnp.float32))
    return jax.jit(jax.grad(lambda b: jnp.vdot(function(b, x).astype(b.dtype), g)))(like)


@functools.cache
def drawn(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, size, size, size, 4))
    return x, rng.normal(0.1, 1, size=(1, *(2 * size,) * 3, 4))  # the cotangent of a doubled x


def folded(mode):
    rng = np.random.default_rng(1)
    up, kernel = rng.normal(size=(2, 2, 2, 4, 4)), rng.normal(size=(3, 3, 3, 6, 4)) / 9

    def function(bias, x):
        skip = jnp.ones((1, *(2 * n for n in x.shape[1:-1]), 2), x.dtype)
        arrays = up.astype(x.dtype), bias, kernel.astype(x.dtype)
        return ops.up_concat_conv(x, skip, *arrays, mode=mode)

    return function


def module(net):
    def function(bias, x):
        variables = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
        rest = {k: jnp.zeros(v.shape, v.dtype) for k, v in variables.items() if k != "bias"}
        return net.clone(dtype=x.dtype).apply({"params": rest | {"bias": bias}}, x)

    return function


FUNCTIONS = {
    "add_bias": lambda bias, x: ops.add_bias(x, bias),
    "scale_channels": lambda factor, x: ops.scale_channels(x**2, factor),
    "folded": folded("fast"),
    "plain": folded("lax"),
    "Conv": module(Conv(4, 1, use_bias=True)),
    "DepthUpConv": module(DepthUpConv(3, 1, 1)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_is_summed_in_float32(name):
    function, (x, g) = FUNCTIONS[name], drawn(16)
    if name not in ("folded", "plain"):
        x = np.repeat(np.repeat(np.repeat(x, 2, 1), 2, 2), 2, 3)
    with jax.enable_x64(True):
        expected = gradient(function, jnp.asarray(x), jnp.asarray(g))
    small = gradient(function, jnp.asarray(x, jnp.bfloat16), jnp.asarray(g, jnp.float32))
    assert small.dtype == jnp.float32
    np.testing.assert_allclose(small, expected, rtol=0.01, atol=0.01 * np.abs(expected).max())


def test_the_gate_of_squeeze_and_excitation_learns_from_every_voxel():
    """Each voxel adds as much to the gate's gradient: of 32^3 in bfloat16 few would be left."""
    net, x = SqueezeExcite(4), np.ones((1, 32, 32, 32, 4))
    with jax.enable_x64(True):
        params = net.init(jax.random.key(0), jnp.asarray(x))["params"]
    found = {}
    for dtype in ("bfloat16", "float64"):
        with jax.enable_x64(dtype == "float64"):
            run = net.clone(dtype=dtype)
            grad = jax.grad(lambda p: run.apply({"params": p}, jnp.asarray(x, dtype)).sum())  # noqa: B023
            found[dtype] = grad(params)["conv_expand"]["bias"]
    np.testing.assert_allclose(found["bfloat16"], found["float64"], rtol=0.03)


def test_the_result_has_the_dtype_of_the_tensor():
    x, values = jnp.ones((1, 2, 3), jnp.bfloat16), jnp.arange(3.0)
    for apply, expected in ((ops.add_bias, [1, 2, 3]), (ops.scale_channels, [0, 1, 2])):
        found = apply(x, values)
        assert found.dtype == jnp.bfloat16
        np.testing.assert_array_equal(found[0].astype(np.float32), [expected] * 2)
