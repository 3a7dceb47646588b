"""The kernel's gradient of a dense 3D convolution, for CPUs.

XLA computes it as a convolution with a window as large as the image, after transposing both. Here
it is a sum of matrix products over blocks of rows that stay in the cache.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops import winograd
from crossdim_jax.ops.windows import Padding, pad_or_cut, turned_padding

# Voxels of one block of the kernel's gradient: its operands then fit a core's cache.
BLOCK_VOXELS = 2048


def kernel_gradient(
    x: jax.Array, g: jax.Array, window: tuple[int, ...], padding: Padding, filtered: bool = False
) -> jax.Array:
    """The kernel's gradient of a 3D convolution with stride 1, as matrix products.

    `dk[t, i, j] = sum_p x[p + (t, i, j) - low]^T g[p]`. Rows (the second spatial axis) are taken in
    blocks. Of a block, the gradient's copies shifted along the first and the third axis stand side
    by side as columns, and so do the window's rows of x: one product gives all taps. The first
    axis is never cut, as it may be sharded.

    Args:
      x: `(b, d, h, w, c_in)`.
      g: `(b, d_out, h_out, w_out, c_out)`.
      window: (kd, kh, kw).
      padding: of the convolution, `((low, high), ...)`.
      filtered: by minimal filtering, see `winograd`: the transpose of what `dense` does then, with
        fewer products, and no copies shifted along the first axis. Needs kd = 3.

    Returns:
      `(kd, kh, kw, c_in, c_out)`, float32 at least.
    """
    if x.shape[-1] < g.shape[-1]:
        # Shift the one with fewer channels: the same sum with the roles exchanged.
        swapped = kernel_gradient(g, x, window, turned_padding(window, padding), filtered)
        return jnp.swapaxes(swapped[::-1, ::-1, ::-1], -1, -2)
    batch, depth, _, width, c_in = x.shape
    d_out, h_out, w_out, c_out = g.shape[1:]
    kd, kh, kw = window
    (d_low, _), (h_low, h_high), (w_low, _) = padding
    rows = _rows_per_block(h_out, batch * depth * width)
    blocks = -(-h_out // rows)
    # Rows of zeros fill the last block.
    g = pad_or_cut(g, 2, 0, blocks * rows - h_out)
    x = pad_or_cut(x, 2, h_low, h_high + blocks * rows - h_out)

    def block(n):
        part = lax.dynamic_slice_in_dim(g, n * rows, rows, 2)
        part = pad_or_cut(part, 3, kw - 1 - w_low, width + w_low - w_out)
        seen = lax.dynamic_slice_in_dim(x, n * rows, rows + kh - 1, 2)
        return (_of_groups if filtered else _of_slices)(seen, part, window, d_low)

    if blocks == 1:
        total = block(0)
    else:  # from zeros: the block is then compiled once
        like = jax.eval_shape(block, 0)
        zeros = jnp.zeros(like.shape, like.dtype)
        total = lax.fori_loop(0, blocks, lambda n, total: total + block(n), zeros)
    if filtered:
        total = jnp.stack(
            winograd.combined(winograd.filtering_for(d_out).planes.T, tuple(total)), 1
        )
    return total.reshape(kh, c_in, kd, kw, c_out).transpose(2, 0, 3, 1, 4)


def _of_slices(x, g, window, low):
    """Gradient of a block: `(kh c_in, kd kw c_out)`."""
    taps, depth = window[0], x.shape[1]
    # Column (t, j) at (u, v) is g[u - t + low, v - j + w_low].
    g = pad_or_cut(g, 1, taps - 1 - low, depth + low - g.shape[1])
    return _product(x, _shifted(g, 1, taps, depth), window)


def _of_groups(x, g, window, low):
    """Gradient of a block, as the products of minimal filtering: `(m + 2, kh c_in, kw c_out)`."""
    depth = g.shape[1]
    filtering = winograd.filtering_for(depth)
    m = filtering.size
    g = pad_or_cut(g, 1, 0, m * filtering.groups(depth) - depth)
    sides = winograd.combined(filtering.outputs.T, [g[:, i::m] for i in range(m)])
    mixed = winograd.mixed_slices(x, low, depth, filtering)
    return jnp.stack([_product(a, [b], window) for a, b in zip(mixed, sides, strict=True)])


def _product(x, parts, window):
    """Product of the windows' rows of x with all parts' copies, shifted along a row."""
    _, kh, kw = window
    rows, width = parts[0].shape[2], x.shape[3]
    seen = jnp.concatenate([x[:, :, i : i + rows] for i in range(kh)], -1)
    columns = [column for part in parts for column in _shifted(part, 3, kw, width)]
    columns = jnp.concatenate(columns, -1)
    return lax.dot_general(
        seen.reshape(-1, seen.shape[-1]),
        columns.reshape(-1, columns.shape[-1]),
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )


def _shifted(x, axis, taps, size):
    """Entries `taps - 1 - t` and on of an axis, size of them, for each tap t."""
    return [
        lax.slice_in_dim(x, first, first + size, axis=axis) for first in range(taps - 1, -1, -1)
    ]


def _rows_per_block(height: int, voxels_per_row: int) -> int:
    """Rows that make `BLOCK_VOXELS` voxels or more, if there are so many.

    A divisor of the height, unless that makes a block more than twice as large.
    """
    wanted = min(math.ceil(BLOCK_VOXELS / voxels_per_row), height)
    divisor = next(n for n in range(wanted, height + 1) if height % n == 0)
    return divisor if divisor <= 2 * wanted else wanted
