"""Upsample, concatenate, convolve: the head of every decoder level, as one operation.

A transposed convolution with window 2 and stride 2 followed by a 3^n convolution over
`concat(upsampled, skip)` is linear in both inputs: a convolution of the skip, plus a convolution of
the coarse input with a window of 2 on its own grid, one for each of the 2^n places a fine voxel can
have in its coarse one. The upsampled tensor and the concatenation never exist, forward or backward,
and in 3D the coarse part takes 8 taps instead of 27.
"""

import functools
import itertools

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from crossdim_jax.ops.blocks import depth_to_space, space_to_depth
from crossdim_jax.ops.channelwise import add_bias, widened
from crossdim_jax.ops.conv import choose, conv, upsample_conv

# [parity of the fine voxel, coarse tap, fine tap, parity of what it sees]: along one axis the fine
# voxel 2 p + d sees 2 p + d + t - 1, which lies in the coarse voxel p + o - 1 + d at parity e.
_MEETS = np.zeros((2, 2, 3, 2), np.float32)
for _d in range(2):
    for _t in range(3):
        _place = _d + _t - 1  # relative to 2 p, from -1 to 2
        _MEETS[_d, _place // 2 + 1 - _d, _t, _place % 2] = 1

# Below this many coarse voxels, composing the two kernels costs more than it saves.
MIN_COARSE_VOXELS = 16**3


def up_concat_conv_reference(
    x: Array, skip: Array, up_kernel: Array, up_bias: Array, kernel: Array, *, mode: str = "lax"
) -> Array:
    """The plain form of `up_concat_conv`, step by step."""
    nd = x.ndim - 2
    up = add_bias(upsample_conv(x, up_kernel), up_bias)
    joined = jnp.concatenate([up, skip.astype(up.dtype)], axis=-1)
    return conv(joined, kernel, strides=(1,) * nd, padding=((1, 1),) * nd, mode=mode)


def up_concat_conv(
    x: Array,
    skip: Array,
    up_kernel: Array,
    up_bias: Array,
    kernel: Array,
    *,
    mode: str = "auto",
    min_coarse_voxels: int = MIN_COARSE_VOXELS,
) -> Array:
    """`conv3(concat(upsample_conv(x, up_kernel) + up_bias, skip), kernel)` with zero padding.

    Args:
      x: `(b, *coarse, c_in)`.
      skip: `(b, *(2 * coarse), c_skip)`; c_skip may be 0, the plain form is then used.
      up_kernel: `(2, ..., 2, c_in, c_up)`, see `upsample_conv`.
      up_bias: `(c_up,)`.
      kernel: `(3, ..., 3, c_up + c_skip, c_out)`.
      mode: see `choose`; "fast" folds, on grids that are worth it.
      min_coarse_voxels: on smaller grids the plain form is used.

    Returns:
      `(b, *(2 * coarse), c_out)`.
    """
    coarse = x.shape[1:-1]
    if (
        choose(mode) != "fast"
        or np.prod(coarse) < min_coarse_voxels
        or set(up_kernel.shape[:-2]) != {2}
        or not skip.shape[-1]  # no convolution that could be kept apart
    ):
        return up_concat_conv_reference(x, skip, up_kernel, up_bias, kernel, mode=mode)
    return _folded(x, skip, up_kernel, up_bias, kernel, mode)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _folded(x, skip, up_kernel, up_bias, kernel, mode):
    nd, c_up = x.ndim - 2, up_kernel.shape[-1]
    ones = (1,) * nd
    of_up, of_skip = kernel[..., :c_up, :], kernel[..., c_up:, :]
    y = conv(skip.astype(x.dtype), of_skip, strides=ones, padding=((1, 1),) * nd, mode=mode)
    parts = conv(x, _compose(up_kernel, of_up), strides=ones, padding=((1, 1),) * nd, mode=mode)
    up = depth_to_space(_own_windows(parts, nd), (2,) * nd)
    return (y + up + _bias_field(up_bias, of_up, skip.shape[1:-1])).astype(x.dtype)


def _folded_fwd(x, skip, up_kernel, up_bias, kernel, mode):
    arguments = (x, skip, up_kernel, up_bias, kernel)
    return _folded(*arguments, mode), arguments


def _folded_bwd(mode, arguments, g):
    x, skip, up_kernel, up_bias, kernel = arguments
    nd, c_up = x.ndim - 2, up_kernel.shape[-1]
    ones, same = (1,) * nd, ((1, 1),) * nd
    of_up, of_skip = kernel[..., :c_up, :], kernel[..., c_up:, :]
    convolve = functools.partial(conv, strides=ones, padding=same, mode=mode)
    # Each of the three terms of the sum on its own; nothing of the forward pass is used again.
    _, of_skips = jax.vjp(convolve, skip.astype(x.dtype), of_skip)
    d_skip, d_of_skip = of_skips(g)
    _, of_fields = jax.vjp(lambda b, k: _bias_field(b, k, skip.shape[1:-1]), up_bias, of_up)
    d_bias, d_of_up = of_fields(jnp.sum(g.astype(widened(g)), 0, keepdims=True))
    composed, of_kernels = jax.vjp(_compose, up_kernel, of_up)
    _, of_parts = jax.vjp(convolve, x, composed)
    d_x, d_composed = of_parts(_own_places(space_to_depth(g, (2,) * nd), nd))
    d_up_kernel, d_of_up_too = of_kernels(d_composed)
    d_kernel = jnp.concatenate([d_of_up + d_of_up_too, d_of_skip], -2)
    return d_x, d_skip.astype(skip.dtype), d_up_kernel, d_bias, d_kernel


_folded.defvjp(_folded_fwd, _folded_bwd)


def _parities(nd: int) -> list[tuple[int, ...]]:
    return list(itertools.product((0, 1), repeat=nd))


def _own_windows(parts: Array, nd: int) -> Array:
    """`(b, *(n + 1), 2^nd * c)` -> `(b, *n, 2^nd * c)`: each parity from its own position on."""
    spatial = parts.shape[1:-1]
    features = parts.shape[-1] // 2**nd
    own = [
        parts[(slice(None), *(slice(d, d + n - 1) for d, n in zip(parity, spatial, strict=True)))][
            ..., p * features : (p + 1) * features
        ]
        for p, parity in enumerate(_parities(nd))
    ]
    return jnp.concatenate(own, -1)


def _own_places(parts: Array, nd: int) -> Array:
    """The transpose of `_own_windows`: each parity's values, and zeros where it has none."""
    features = parts.shape[-1] // 2**nd
    placed = [
        jnp.pad(
            parts[..., p * features : (p + 1) * features],
            ((0, 0), *((d, 1 - d) for d in parity), (0, 0)),
        )
        for p, parity in enumerate(_parities(nd))
    ]
    return jnp.concatenate(placed, -1)


def _compose(up_kernel: Array, kernel: Array) -> Array:
    """The kernel on the coarse grid, `(2, ..., 2, c_in, 2^n * c_out)`."""
    nd = up_kernel.ndim - 2
    e, t = "efg"[:nd], "tuv"[:nd]
    d, o = "abc"[:nd], "ijk"[:nd]
    pairs = jnp.einsum(f"{e}xz,{t}zy->{e}{t}xy", up_kernel, kernel)
    meets = jnp.asarray(_MEETS, pairs.dtype)
    axes = ",".join(d[i] + o[i] + t[i] + e[i] for i in range(nd))
    composed = jnp.einsum(f"{axes},{e}{t}xy->{o}x{d}y", *(meets,) * nd, pairs)
    return composed.reshape(*composed.shape[: nd + 1], -1)


def _bias_field(bias: Array, kernel: Array, spatial: tuple[int, ...]) -> Array:
    """Field that a constant `bias` becomes under the zero-padded convolution: less at the borders.

    `(1, *spatial, c_out)`, float32 at least. Along each axis only the first and the last voxel
    differ.
    """
    wide = widened(kernel)
    taps = jnp.tensordot(kernel.astype(wide), bias.astype(wide), ([-2], [0]))  # (3, ..., 3, c_out)
    for axis, n in enumerate(spatial):
        first, middle, last = (
            lax.slice_in_dim(taps, start, stop, axis=axis).sum(axis, keepdims=True)
            for start, stop in ((1, 3), (0, 3), (0, 2))
        )
        shape = list(middle.shape)
        shape[axis] = n - 2
        taps = jnp.concatenate([first, jnp.broadcast_to(middle, shape), last], axis=axis)
    return taps.reshape(1, *spatial, -1)
