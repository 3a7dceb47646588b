"""How the tests compare a fast form with its reference."""

import jax
import jax.numpy as jnp
import numpy as np

OPTIMISED = {"xla_backend_optimization_level": 3}  # as users compile; the tests' own default is 0


def value_and_gradients(f, *args, seed=0, compiler_options=None):
    """The value of f and its gradients for a random cotangent, compiled as one program."""
    like = jax.eval_shape(f, *args)
    g = jnp.asarray(np.random.default_rng(seed).normal(size=like.shape), like.dtype)

    def both(g, *args):
        y, pull = jax.vjp(f, *args)
        return [y, *pull(g)]

    return jax.jit(both, compiler_options=compiler_options)(g, *args)


def assert_same(ours, reference, rtol):
    """Equal shapes and dtypes, and values up to `rtol` of the largest."""
    for a, b in zip(ours, reference, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = (np.asarray(v, np.float64) for v in (a, b))
        assert np.abs(a - b).max(initial=0) <= rtol * (np.abs(b).max(initial=0) or 1.0)
