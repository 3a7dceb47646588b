"""Pooling over windows, 2D and 3D from one body of code."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.conv import choose
from crossdim_jax.ops.windows import Padding


def max_pool(
    x: jax.Array,
    kernel_size: Sequence[int],
    strides: Sequence[int],
    padding: Padding,
    *,
    mode: str = "auto",
) -> jax.Array:
    """Largest value of each window and channel; what lies beyond the ends is smaller than any.

    Where several are equal the gradient goes to the first of them.

    Args:
      x: `(b, *spatial, c)`.
      kernel_size: one per spatial axis.
      strides: one per spatial axis.
      padding: `((low, high), ...)`, one pair per spatial axis.
      mode: see `choose`.

    Returns:
      `(b, *spatial_out, c)`.
    """
    form = max_pool_lax if choose(mode) == "lax" else _axis_by_axis
    return form(x, tuple(kernel_size), tuple(strides), tuple(padding))


def max_pool_lax(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """The plain form, the reference; arguments as those of `max_pool`."""
    return _reduce(x, -jnp.inf, lax.max, kernel_size, strides, padding)


def avg_pool(
    x: jax.Array, kernel_size: Sequence[int], strides: Sequence[int], padding: Padding
) -> jax.Array:
    """Mean of each window and channel, with zeros beyond the ends; arguments as `max_pool`'s."""
    return _reduce(x, 0.0, lax.add, kernel_size, strides, padding) / math.prod(kernel_size)


def _reduce(x, initial, operation, kernel_size, strides, padding):
    window, steps, pads = (1, *kernel_size, 1), (1, *strides, 1), ((0, 0), *padding, (0, 0))
    return lax.reduce_window(x, x.dtype.type(initial), operation, window, steps, pads)


def _axis_by_axis(x, kernel_size, strides, padding):
    """The largest of shifted slices, the last axis first so that the first in the window wins.

    The gradient is a few selections; that of a window at once is a scatter, which XLA's CPU backend
    does one voxel after the other.
    """
    for axis in range(len(kernel_size), 0, -1):
        window, stride = kernel_size[axis - 1], strides[axis - 1]
        pads = [(0, 0, 0)] * x.ndim
        pads[axis] = (*padding[axis - 1], 0)
        x = lax.pad(x, x.dtype.type(-jnp.inf), pads)
        last = (x.shape[axis] - window) // stride * stride
        first, *others = (
            lax.slice_in_dim(x, tap, tap + last + 1, stride, axis) for tap in range(window)
        )
        for other in others:  # NaN is kept, as by the plain form
            first = jnp.where((other <= first) | jnp.isnan(first), first, other)
        x = first
    return x
