"""Dense 3D convolution for CPUs: 2D convolutions with depth folded into the batch.

XLA sends a 3D convolution down a slow path on CPUs. Here it is a few 2D ones, in the form that
suits its shape: groups of slices with up to half of the products saved (`_filtered`, many
channels); all depth taps' inputs side by side (`_gathered`, large grids, fewer input than output
channels); all depth taps' outputs at once, which are then shifted and added (`_stacked`, other
large grids); a convolution for each tap (`_summed`, small grids); or one matrix product
(`_patches`, very small ones). Stride 2 is taken away first (`_halved`). The gradients are of the
same making, that of the input by the same code and that of the kernel in `kernel_gradient`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops import winograd
from crossdim_jax.ops.blocks import space_to_depth
from crossdim_jax.ops.kernel_gradient import kernel_gradient
from crossdim_jax.ops.windows import Padding, pad_or_cut, turned_padding

# On grids of so many voxels or fewer the kernel outweighs the image: it should stay as it lies.
SMALL_GRID = 8**3

# With fewer channels on either side, mixing slices takes longer than it saves.
FILTERED_CHANNELS = 32


def conv3d_folded(
    x: jax.Array,
    kernel: jax.Array,
    strides: tuple[int, ...],
    padding: Padding,
    depth_shared: bool = False,
) -> jax.Array:
    """Dense 3D convolution; arguments as those of `conv`.

    depth_shared: whether devices may share the depth of x; slices then form no groups, as a group
      would lie on two of them.
    """
    if strides == (1, 1, 1):
        return _unit_stride(x, kernel, padding, depth_shared)
    if strides == (2, 2, 2):
        return _unit_stride(*_halved(x, kernel, padding), depth_shared)
    return _summed(x, kernel, strides, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _unit_stride(x, kernel, padding, depth_shared):
    voxels = math.prod(x.shape[:4])
    if voxels <= kernel.shape[-1]:
        return _patches(x, kernel, padding)
    if not depth_shared and _is_filtered(x, kernel):
        return _filtered(x, kernel, padding)
    if voxels <= SMALL_GRID:
        return _summed(x, kernel, (1, 1, 1), padding)
    if kernel.shape[-2] < kernel.shape[-1]:
        # Of the two, that with fewer channels should be there once for each depth tap.
        return _gathered(x, kernel, padding)
    return _stacked(x, kernel, padding)


def _forward(x, kernel, padding, depth_shared):
    return _unit_stride(x, kernel, padding, depth_shared), (x, kernel)


def _backward(padding, depth_shared, residuals, g):
    x, kernel = residuals
    x, g = lax.optimization_barrier((x, g))  # else x may be padded long before, and kept
    if math.prod(x.shape[:4]) <= kernel.shape[-1]:
        # Two matrix products that take the kernel as it lies, too.
        return jax.vjp(lambda x, k: _patches(x, k, padding), x, kernel)[1](g)
    # The input's gradient is the same operation with the kernel turned round.
    turned = jnp.swapaxes(kernel[::-1, ::-1, ::-1], -1, -2)
    dx = _unit_stride(g, turned, turned_padding(kernel.shape[:3], padding), depth_shared)
    filtered = not depth_shared and _is_filtered(x, kernel)
    dkernel = kernel_gradient(x, g, kernel.shape[:3], padding, filtered)
    return dx, dkernel.astype(kernel.dtype)


_unit_stride.defvjp(_forward, _backward)


def _halved(
    x: jax.Array, kernel: jax.Array, padding: Padding
) -> tuple[jax.Array, jax.Array, Padding]:
    """A convolution with stride 2 as one with stride 1 over blocks of 2 x 2 x 2 voxels.

    A block's voxels become channels, `(b, d / 2, h / 2, w / 2, 8 c_in)`; the window is filled up
    with zeros to whole blocks. Half of its products are with zeros, and still its gradients take a
    fraction of the time that a strided convolution's take.
    """
    odd = tuple((0, n % 2) for n in x.shape[1:4])
    blocks = space_to_depth(jnp.pad(x, ((0, 0), *odd, (0, 0))), (2, 2, 2))
    fill, outer = [], []
    for n, k, (low, high) in zip(x.shape[1:4], kernel.shape[:3], padding, strict=True):
        before = low % 2
        taps = -(-(k + before) // 2)
        size = (n + low + high - k) // 2 + 1
        fill.append((before, 2 * taps - k - before))
        first = (low + 1) // 2
        outer.append((first, size - 1 + taps - first - (n + 1) // 2))
    by_output = jnp.moveaxis(jnp.pad(kernel, (*fill, (0, 0), (0, 0))), -1, 0)
    return blocks, jnp.moveaxis(space_to_depth(by_output, (2, 2, 2)), 0, -1), tuple(outer)


def _conv2d(x, kernel, strides, padding):
    numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def _is_filtered(x: jax.Array, kernel: jax.Array) -> bool:
    """True if minimal filtering suits the type: in a short one, its sums would lose too much."""
    channels = min(kernel.shape[-2:])
    precise = jnp.finfo(x.dtype).bits >= 32
    return kernel.shape[0] == 3 and x.shape[1] > 1 and channels >= FILTERED_CHANNELS and precise


def _filtered(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """Groups of output slices from fewer 2D convolutions than one for each of their taps."""
    batch, depth, height, width, _ = x.shape
    size = depth + sum(padding[0]) - 2
    filtering = winograd.filtering_for(size)
    parts = [
        _conv2d(slices.reshape(-1, height, width, x.shape[-1]), plane, (1, 1), padding[1:])
        for slices, plane in zip(
            winograd.mixed_slices(x, padding[0][0], size, filtering),
            winograd.combined(filtering.planes, tuple(kernel)),
            strict=True,
        )
    ]
    y = jnp.stack(winograd.combined(filtering.outputs, parts), 1)
    y = y.reshape(batch, -1, *y.shape[2:])
    return y if y.shape[1] == size else y[:, :size]


def _stacked(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One 2D convolution gives the outputs of all depth taps, which are shifted and added."""
    batch, depth = x.shape[:2]
    taps, out = kernel.shape[0], kernel.shape[-1]
    flat = jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:4], taps * out)
    y = _conv2d(x.reshape(batch * depth, *x.shape[2:]), flat, (1, 1), padding[1:])
    y = y.reshape(batch, depth, *y.shape[1:3], taps, out)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    parts = (_seen(y[..., t, :], 1, t, taps, padding[0]) for t in range(taps))
    return sum(part.astype(wide) for part in parts).astype(x.dtype)


def _seen(x: jax.Array, axis: int, tap: int, taps: int, pad: tuple[int, int]) -> jax.Array:
    """The entries of x along an axis that one of its taps sees, and zeros where there are none.

    Padding each tap's own entries leaves one pass over x; padding x first would make two.
    """
    length, low = x.shape[axis], pad[0]
    size = length + sum(pad) - taps + 1
    first, last = max(low - tap, 0), min(length + low - tap, size)
    if first >= last:
        return jnp.zeros((*x.shape[:axis], size, *x.shape[axis + 1 :]), x.dtype)
    part = lax.slice_in_dim(x, first + tap - low, last + tap - low, axis=axis)
    return pad_or_cut(part, axis, first, size - last)


def _gathered(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One 2D convolution over the slices that all depth taps see, side by side as channels."""
    batch, taps = x.shape[0], kernel.shape[0]
    x = jnp.concatenate([_seen(x, 1, t, taps, padding[0]) for t in range(taps)], -1)
    flat = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    y = _conv2d(x.reshape(-1, *x.shape[2:]), flat, (1, 1), padding[1:])
    return y.reshape(batch, -1, *y.shape[1:])


def _patches(x: jax.Array, kernel: jax.Array, padding: Padding) -> jax.Array:
    """One matrix product of everything that each voxel sees with the kernel as it lies."""
    seen = [x]
    for axis, (taps, pad) in enumerate(zip(kernel.shape[:3], padding, strict=True), 1):
        seen = [_seen(x, axis, t, taps, pad) for x in seen for t in range(taps)]
    return jnp.concatenate(seen, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _summed(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array:
    """One 2D convolution per depth tap, over the slices that tap sees; their sum."""
    batch, depth = x.shape[:2]
    taps = kernel.shape[0]
    step = strides[0]
    size = (depth + sum(padding[0]) - taps) // step + 1
    x = pad_or_cut(x, 1, *padding[0])
    last = (size - 1) * step + 1
    total = 0
    for t in range(taps):
        slices = x[:, t : t + last : step]
        y = _conv2d(
            slices.reshape(batch * size, *slices.shape[2:]), kernel[t], strides[1:], padding[1:]
        )
        total = total + y.astype(jnp.promote_types(x.dtype, jnp.float32))
    return total.reshape(batch, size, *total.shape[1:]).astype(x.dtype)
