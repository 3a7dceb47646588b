"""A stride along depth alone: the plain convolution, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops


@pytest.mark.parametrize(
    ("depth", "stride", "window"), [(9, 2, 3), (8, 2, 3), (10, 3, 3), (12, 4, 3), (7, 2, 5)]
)
def test_equals_the_plain_convolution_in_value_and_gradient(rng, depth, stride, window):
    pad = window // 2
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(size=(2, depth, 3, 4, 3)))
        kernel = jnp.asarray(rng.normal(size=(window, 3, 3, 3, 5)))
        results = []
        for mode in ("fast", "lax"):
            y, pull = jax.vjp(
                lambda x, k, mode=mode: ops.conv(
                    x,
                    k,
                    strides=(stride, 1, 1),
                    padding=((pad, pad), (1, 1), (1, 1)),
                    mode=mode,
                ),
                x,
                kernel,
            )
            results.append([y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))])
        assert results[0][0].shape[1] == -(-depth // stride)
        for ours, reference in zip(*results, strict=True):
            scale = float(jnp.abs(reference).max())
            np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-10 * scale)
