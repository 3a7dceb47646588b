"""Pooling over windows, 2D and 3D from one body of code."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.windows import Padding


def max_pool(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """Largest value of each window and channel; what lies beyond the ends is smaller than any.

    Args:
      x: `(b, *spatial, c)`.
      kernel_size: one per spatial axis.
      strides: one per spatial axis.
      padding: `((low, high), ...)`, one pair per spatial axis.

    Returns:
      `(b, *spatial_out, c)`.
    """
    return _reduce(x, -jnp.inf, lax.max, kernel_size, strides, padding)


def avg_pool(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """Mean of each window and channel, with zeros beyond the ends; arguments as `max_pool`'s."""
    return _reduce(x, 0.0, lax.add, kernel_size, strides, padding) / math.prod(kernel_size)


def _reduce(x, initial, operation, kernel_size, strides, padding):
    window, steps = (1, *kernel_size, 1), (1, *strides, 1)
    pads = ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, x.dtype.type(initial), operation, window, steps, pads)
