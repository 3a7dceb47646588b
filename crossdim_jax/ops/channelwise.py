"""A bias or a factor for each channel, whose gradient sums over every voxel.

In bfloat16 such a sum goes wrong without a word: a voxel's part is added to a number that has eight
bits, and is lost once that is some hundred times as large. Of 32^3 voxels a third may be left.
"""

import jax
import jax.numpy as jnp


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` of x's dtype; added, and the gradient summed, in float32 at least.

    Args:
      x: `(b, *spatial, c)`.
      bias: `(c,)`, of any dtype.
    """
    wide = widened(x)
    return (x.astype(wide) + _per_channel(bias, x).astype(wide)).astype(x.dtype)


def scale_channels(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x * factor` of x's dtype; multiplied, and the gradient summed, in float32 at least.

    Args:
      x: `(b, *spatial, c)`.
      factor: `(c,)`, or `(b, 1, ..., 1, c)` for each sample; of any dtype.
    """
    wide = widened(x)
    return (x.astype(wide) * _per_channel(factor, x).astype(wide)).astype(x.dtype)


def widened(x: jax.Array) -> jnp.dtype:
    """Dtype for sums over the voxels of x: float32, or float64 of float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _per_channel(value: jax.Array, x: jax.Array) -> jax.Array:
    return value.reshape((1,) * (x.ndim - 1) + (-1,)) if value.ndim == 1 else value
