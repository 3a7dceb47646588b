"""A stride along depth alone: the plain convolution, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import ops
from tests.ops.agreement import assert_same, value_and_gradients


@pytest.mark.parametrize(
    ("depth", "stride", "window"), [(9, 2, 3), (8, 2, 3), (10, 3, 3), (12, 4, 3), (7, 2, 5)]
)
def test_equals_the_plain_convolution_in_value_and_gradient(rng, depth, stride, window):
    pad = window // 2
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, depth, 3, 4, 3)))
        kernel = jnp.asarray(rng.normal(size=(window, 3, 3, 3, 5)))
        shape = {"strides": (stride, 1, 1), "padding": ((pad, pad), (1, 1), (1, 1))}
        ours, reference = (
            value_and_gradients(functools.partial(ops.conv, mode=mode, **shape), x, kernel)
            for mode in ("fast", "lax")
        )
        assert ours[0].shape[1] == -(-depth // stride)
        assert_same(ours, reference, 1e-10)
