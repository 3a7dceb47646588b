"""Max pooling axis by axis: the plain form, in value and gradient, ties and NaN included."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops
from tests.ops.agreement import assert_same, value_and_gradients


@pytest.mark.parametrize(
    ("shape", "window", "strides", "padding"),
    [
        ((2, 9, 8, 3), (3, 3), (2, 2), ((1, 1), (0, 1))),
        ((1, 7, 6, 5, 2), (3, 3, 3), (2, 2, 2), ((1, 1), (0, 1), (1, 1))),
        ((1, 4, 7, 6, 2), (1, 2, 2), (1, 2, 2), ((0, 0),) * 3),
        ((1, 5, 6, 6, 2), (2, 3, 3), (2, 1, 2), ((0, 1), (1, 1), (0, 1))),
    ],
    ids=str,
)
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_plain_form_in_value_and_gradient(rng, shape, window, strides, padding, ties):
    x = rng.normal(size=shape)
    x = jnp.asarray(np.maximum(np.round(x), 0) if ties else x, jnp.float32)
    ours, reference = (
        value_and_gradients(
            functools.partial(
                ops.max_pool, kernel_size=window, strides=strides, padding=padding, mode=mode
            ),
            x,
        )
        for mode in ("fast", "lax")
    )
    assert_same(ours, reference, 1e-6)


@pytest.mark.parametrize("mode", ["fast", "lax"])
def test_nan_is_passed_on_and_padding_never_wins(rng, mode):
    x = jnp.asarray(-1 - rng.random((1, 4, 4, 1)), jnp.float32).at[0, 0, 0, 0].set(jnp.nan)
    y = ops.max_pool(x, (2, 2), (2, 2), ((0, 0),) * 2, mode=mode)
    np.testing.assert_array_equal(jnp.isnan(y)[0, ..., 0], [[True, False], [False, False]])
    assert jnp.isfinite(ops.max_pool(x[:, 2:], (3, 3), (2, 2), ((1, 1),) * 2, mode=mode)).all()
