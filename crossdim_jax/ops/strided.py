"""Dense 3D convolution with a stride along depth only, for CPUs.

The slices that each depth tap sees stand side by side as channels: what is left is a convolution of
slices with no stride, whose gradients are as fast as those of any other.
"""

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.dense import conv3d_folded

Padding = tuple[tuple[int, int], ...]


def conv_depth_strided(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Arguments as those of `conv`; the stride in the plane is 1."""
    taps, depth = kernel.shape[0], x.shape[1]
    (low, high), zero = padding[0], jnp.zeros((), x.dtype)
    size = (depth + low + high - taps) // stride + 1
    ends = ((low, high), *((0, 0),) * 3)
    x = lax.pad(x, zero, ((0, 0, 0), *((a, b, 0) for a, b in ends)))
    last = (size - 1) * stride + 1
    seen = [lax.slice_in_dim(x, t, t + last, stride, axis=1) for t in range(taps)]
    flat = jnp.moveaxis(kernel, 0, 2).reshape(1, *kernel.shape[1:3], -1, kernel.shape[-1])
    return conv3d_folded(jnp.concatenate(seen, -1), flat, (1, 1, 1), ((0, 0), *padding[1:]))
