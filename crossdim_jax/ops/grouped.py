"""Grouped convolution for CPUs: a dense one for each group.

XLA's CPU backend turns the kernel gradient of a grouped convolution into a dense one over all
channels that is masked afterwards.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.conv import choose, conv, conv_lax
from crossdim_jax.ops.windows import Padding


def grouped_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Padding,
    mode: str = "auto",
) -> jax.Array:
    """Grouped convolution: each group of input channels gives its own output channels.

    Args:
      x: `(b, *spatial, c_in)`.
      kernel: `(*window, c_in / groups, c_out)`.
      strides, padding, mode: as those of `conv`.

    Returns:
      `(b, *spatial_out, c_out)`.
    """
    groups = x.shape[-1] // kernel.shape[-2]
    if choose(mode) == "lax":
        return conv_lax(x, kernel, strides, padding, groups=groups)

    def one(x_and_kernel):
        return conv(*x_and_kernel, strides=strides, padding=padding, mode=mode)

    parts = (
        jnp.moveaxis(array.reshape(*array.shape[:-1], groups, -1), -2, 0) for array in (x, kernel)
    )
    y = jnp.moveaxis(lax.map(one, tuple(parts)), 0, -2)
    return y.reshape(*y.shape[:-2], -1)
