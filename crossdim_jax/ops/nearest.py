"""Repeat voxels, concatenate, convolve: the head of a decoder level without parameters of its own.

Nearest-neighbour upsampling followed by a 3^n convolution over `concat(upsampled, skip)`. Where
every axis is doubled, a fine voxel sees no more than two coarse ones along each, so that the coarse
part is a convolution with a window of 2 on its own grid, one for each place a fine voxel can have
in its coarse one. Where only the depth of a volume grows, by whatever factor, copies of a slice
give copies under the kernel's planes: those are convolved once a slice, then repeated and added.
Either way the repeated tensor and the concatenation never exist, forward or backward.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp

from crossdim_jax.ops.blocks import depth_to_space
from crossdim_jax.ops.conv import choose, conv
from crossdim_jax.ops.fold import _own_places, _own_windows

# [parity of the fine voxel, coarse tap, fine tap]: along one axis the fine voxel 2 p + d sees
# 2 p + d + t - 1, which is a copy of the coarse voxel p + o - 1 + d.
_MEETS = np.zeros((2, 2, 3), np.float32)
for _d in range(2):
    for _t in range(3):
        _MEETS[_d, (_d + _t - 1) // 2 + 1 - _d, _t] = 1

# Below this many coarse voxels of a batch, the plain form is as fast.
MIN_COARSE_VOXELS = 16**2


def nearest(x: Array, size: Sequence[int]) -> Array:
    """Nearest-neighbour resizing to a grid that is nowhere smaller.

    Along an axis of n voxels, voxel i of `size` is a copy of voxel `floor(i n / size)`, as
    PyTorch's `interpolate(mode="nearest")` has it.

    Args:
      x: `(b, *spatial, c)`.
      size: of the output, per spatial axis.
    """
    for axis, (n, wanted) in enumerate(zip(x.shape[1:-1], size, strict=True), 1):
        if wanted != n:
            x = _repeated(x, axis, wanted)
    return x


def _repeated(x: Array, axis: int, size: int) -> Array:
    """Whole repeats, of which the copies that are too many are cut out: no gather, no scatter."""
    n = x.shape[axis]
    if size < n:
        raise ValueError(f"{n} voxels are to become {size}: this only makes grids larger")
    times = -(-size // n)
    shape = (*x.shape[: axis + 1], times, *x.shape[axis + 1 :])
    x = jnp.broadcast_to(jnp.expand_dims(x, axis + 1), shape)
    x = x.reshape(*shape[:axis], n * times, *shape[axis + 2 :])
    return jnp.concatenate(
        [jax.lax.slice_in_dim(x, a, b, axis=axis) for a, b in _runs(n, size, times)], axis
    )


def _runs(n: int, size: int, times: int) -> list[tuple[int, int]]:
    """The stretches of n voxels, each repeated `times`, that are left of them in `size`."""
    source = np.arange(size) * n // size
    place = np.arange(size) - np.searchsorted(source, source)  # within its voxel's copies
    kept = source * times + place
    cuts = np.flatnonzero(np.diff(kept) > 1) + 1
    starts, stops = (0, *cuts), (*cuts, size)
    return [(int(kept[a]), int(kept[b - 1]) + 1) for a, b in zip(starts, stops, strict=True)]


def nearest_concat_conv_reference(x: Array, skip: Array, kernel: Array, *, mode: str = "lax"):
    """The plain form of `nearest_concat_conv`, step by step."""
    nd = x.ndim - 2
    joined = jnp.concatenate([nearest(x, skip.shape[1:-1]), skip.astype(x.dtype)], axis=-1)
    return conv(joined, kernel, strides=(1,) * nd, padding=((1, 1),) * nd, mode=mode)


def nearest_concat_conv(
    x: Array,
    skip: Array,
    kernel: Array,
    *,
    mode: str = "auto",
    min_coarse_voxels: int = MIN_COARSE_VOXELS,
) -> Array:
    """`conv3(concat(nearest(x), skip), kernel)` with zero padding.

    Args:
      x: `(b, *coarse, c_in)`.
      skip: `(b, *fine, c_skip)`; nowhere smaller; c_skip may be 0.
      kernel: `(3, ..., 3, c_in + c_skip, c_out)`.
      mode: see `choose`; "fast" folds where every axis is doubled or only depth grows, on grids
        that are worth it.
      min_coarse_voxels: of a whole batch; on smaller grids the plain form is used.

    Returns:
      `(b, *fine, c_out)`.
    """
    nd, coarse, fine = x.ndim - 2, x.shape[1:-1], skip.shape[1:-1]
    doubled = fine == tuple(2 * n for n in coarse)
    deeper = nd == 3 and fine[1:] == coarse[1:] and fine[0] > coarse[0]
    worth = np.prod(x.shape[:-1]) >= min_coarse_voxels
    if choose(mode) != "fast" or not (doubled or deeper) or not worth:
        return nearest_concat_conv_reference(x, skip, kernel, mode=mode)
    ones, same = (1,) * nd, ((1, 1),) * nd
    of_up, of_skip = kernel[..., : x.shape[-1], :], kernel[..., x.shape[-1] :, :]
    if doubled:
        parts = conv(x, _compose(of_up), strides=ones, padding=same, mode=mode)
        up = depth_to_space(_placed(parts), (2,) * nd)
    else:
        planes = jnp.moveaxis(of_up, 0, -2)  # (3, 3, c_in, depth taps, c_out)
        planes = planes.reshape(1, *planes.shape[:3], -1)
        parts = conv(x, planes, strides=ones, padding=((0, 0), *same[1:]), mode=mode)
        up = _deepened(parts, fine[0])
    if not skip.shape[-1]:
        return up
    return up + conv(skip.astype(x.dtype), of_skip, strides=ones, padding=same, mode=mode)


def _deepened(parts: Array, depth: int) -> Array:
    """`(b, d, h, w, 3 c)`, a plane for each depth tap -> `(b, depth, h, w, c)`.

    Slice z of the result is the sum over taps t of what slice z + t - 1 of the repeated tensor
    gives under plane t.
    """
    features = parts.shape[-1] // 3
    total = 0.0
    for tap in range(3):
        up = _repeated(parts[..., tap * features : (tap + 1) * features], 1, depth)
        shift = [(0, 0, 0)] * parts.ndim
        shift[1] = (1 - tap, tap - 1, 0)
        total = total + jax.lax.pad(up, jnp.zeros((), up.dtype), shift)
    return total


def _compose(kernel: Array) -> Array:
    """The kernel on the coarse grid, `(2, ..., 2, c_in, 2^n * c_out)`."""
    nd = kernel.ndim - 2
    d, o, t = "abc"[:nd], "ijk"[:nd], "tuv"[:nd]
    axes = ",".join(d[i] + o[i] + t[i] for i in range(nd))
    meets = jnp.asarray(_MEETS, kernel.dtype)
    composed = jnp.einsum(f"{axes},{t}xy->{o}x{d}y", *(meets,) * nd, kernel)
    return composed.reshape(*composed.shape[: nd + 1], -1)


@jax.custom_vjp
def _placed(parts: Array) -> Array:
    """`_own_windows`, whose transpose would otherwise be a sum of as many padded tensors."""
    return _own_windows(parts, parts.ndim - 2)


_placed.defvjp(lambda parts: (_placed(parts), None), lambda _, g: (_own_places(g, g.ndim - 2),))
