"""Dense 3D convolution with a stride along depth only, for CPUs.

What is left are convolutions of slices without a stride, whose gradients are as fast as those of
any other. Depth taps that see the same slices give their outputs together, which are then shifted
and added; where no two do, the slices that each sees stand side by side as input channels.
"""

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.dense import conv3d_folded
from crossdim_jax.ops.windows import Padding


def conv_depth_strided(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Arguments as those of `conv`; the stride in the plane is 1."""
    taps, (low, high) = kernel.shape[0], padding[0]
    size = (x.shape[1] + low + high - taps) // stride + 1
    # Output z sees slice stride * z + tap - low: the (z + ahead)-th of those that leave this rest.
    places = [divmod(tap - low, stride) for tap in range(taps)]
    rests = {rest: [t for t in range(taps) if places[t][1] == rest] for _, rest in places}
    if len(rests) == taps:
        seen = [_seen(x, places[t], stride, size) for t in range(taps)]
        flat = jnp.moveaxis(kernel, 0, 2).reshape(1, *kernel.shape[1:3], -1, kernel.shape[-1])
        return _planes(jnp.concatenate(seen, -1), flat, padding)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    total, features = 0.0, kernel.shape[-1]
    for rest, together in rests.items():
        slices = x[:, rest::stride]
        flat = jnp.moveaxis(jnp.stack([kernel[t] for t in together]), 0, -2)
        y = _planes(slices, flat.reshape(1, *flat.shape[:3], -1), padding)
        for i, tap in enumerate(together):
            part = y[..., i * features : (i + 1) * features].astype(wide)
            total = total + _window(part, places[tap][0], size)
    return total.astype(x.dtype)


def _planes(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    return conv3d_folded(x, kernel, (1, 1, 1), ((0, 0), *padding[1:]))


def _seen(x: jax.Array, place: tuple[int, int], stride: int, size: int) -> jax.Array:
    """The slices that a tap sees, `(b, size, h, w, c)`."""
    ahead, rest = place
    return _window(x[:, rest::stride], ahead, size)


def _window(x: jax.Array, first: int, size: int) -> jax.Array:
    """Slices `first` to `first + size`; zeros where there are none."""
    config = [(0, 0, 0)] * x.ndim
    config[1] = (-first, first + size - x.shape[1], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)
