"""Batch norm as one operation: value, gradient and statistics are those of the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_value_gradient_and_statistics_equal_the_plain_form(rng, activation):
    x = jnp.asarray(rng.normal(2.0, 3.0, size=(3, 4, 5, 2)), jnp.float32)
    scale, bias = (jnp.asarray(rng.normal(size=2), jnp.float32) for _ in range(2))
    found = []
    for f in (ops.batch_norm, ops.batch_norm_reference):
        (y, *statistics), pull = jax.vjp(
            lambda *a, f=f: f(*a, eps=1e-5, activation=activation), x, scale, bias
        )
        g = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
        found.append([y, *statistics, *pull((g, *map(jnp.ones_like, statistics)))])
    for ours, reference in zip(*found, strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * scale)
    np.testing.assert_allclose(found[0][1], np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found[0][2], np.var(x, (0, 1, 2)), rtol=1e-5)
