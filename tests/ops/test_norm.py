"""Instance norm with activation: its own gradient equals the one jax derives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops

SHAPES = [(2, 5, 4, 3, 6), (1, 7, 5, 3), (2, 1, 1, 1, 4)]


@pytest.mark.parametrize(
    ("shape", "activation"),  # each shape and each activation; `make test-all` has all pairs
    [
        pytest.param(s, a, marks=() if s == SHAPES[0] or a == "silu" else pytest.mark.slow)
        for s in SHAPES
        for a in ops.ACTIVATIONS
    ],
)
def test_gradient_equals_autodiff(rng, shape, activation):
    with jax.enable_x64(True):
        x = jnp.asarray(rng.normal(2.0, 3.0, shape))
        scale, bias = (jnp.asarray(rng.normal(size=shape[-1])) for _ in range(2))
        g = jnp.asarray(rng.normal(size=shape))
        results = []
        for f in (ops.instance_norm, ops.instance_norm_reference):

            @jax.jit
            def both(g, *a, f=f):
                y, pull = jax.vjp(lambda *a: f(*a, eps=1e-5, activation=activation), *a)
                return y, *pull(g)

            results.append(both(g, x, scale, bias))
        for ours, reference in zip(*results, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-10, atol=1e-10)


def test_every_channel_of_every_sample_is_standardised(rng):
    x = jnp.asarray(rng.normal(50.0, 3.0, (2, 8, 8, 8, 3)), jnp.float32)
    y = ops.instance_norm(x, jnp.ones(3), jnp.zeros(3), eps=1e-5)
    np.testing.assert_allclose(y.mean((1, 2, 3)), 0.0, atol=1e-4)
    np.testing.assert_allclose(y.std((1, 2, 3)), 1.0, rtol=1e-4)


def test_statistics_are_float32_under_bf16(rng):
    """A mean of 200 with deviation 1 is lost in bf16 sums, not in float32 ones."""
    exact = rng.normal(200.0, 1.0, (1, 16, 16, 16, 2))
    x = jnp.asarray(exact, jnp.bfloat16)
    y = ops.instance_norm(x, jnp.ones(2), jnp.zeros(2), eps=1e-5)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean((1, 2, 3))) / wide.std((1, 2, 3))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_layer_in_training_keeps_two_tensors(batch):
    """What the convolution gave and what the norm made of it; no copies computed ahead of time."""

    def kept(layers, n=16, c=16):
        def total(kernels, scales, x):
            for kernel, scale in zip(kernels, scales, strict=True):
                x = ops.conv(x, kernel, strides=(1,) * 3, padding=((1, 1),) * 3, mode="fast")
                x = ops.instance_norm(x, scale, scale, eps=1e-3, activation="silu")
            return x.sum()

        shapes = (layers, 3, 3, 3, c, c), (layers, c), (batch, n, n, n, c)
        step = jax.jit(jax.grad(total, argnums=(0, 1))).lower(*map(jnp.zeros, shapes)).compile()
        return step.memory_analysis().temp_size_in_bytes / (4 * batch * n**3 * c)

    assert (kept(9) - kept(3)) / 6 < 2.5
