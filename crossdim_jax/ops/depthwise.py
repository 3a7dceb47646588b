"""Depthwise convolution for CPUs: shifted multiply-adds, 2D and 3D.

XLA's CPU backend computes a grouped 3D convolution 50 to 200 times slower than it need be, and its
kernel's gradient as a dense convolution of which all but the diagonal is thrown away.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.ops.windows import Padding

# Voxels of a slice that are taken at once for the kernel's gradient.
BLOCK = 16


def _shifts(x: jax.Array, window: Sequence[int], sizes: Sequence[int], strides: Sequence[int]):
    """Yields `(tap, the slice of padded x that this tap sees)` for every tap of an n-D window."""
    if not window:
        yield (), x
        return
    axis = x.ndim - 1 - len(window)
    last = (sizes[0] - 1) * strides[0] + 1
    for t in range(window[0]):
        part = lax.slice_in_dim(x, t, t + last, strides[0], axis)
        for tap, y in _shifts(part, window[1:], sizes[1:], strides[1:]):
            yield (t, *tap), y


def _accumulator(x: jax.Array) -> jnp.dtype:
    """Sums are kept in float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """Zeros at the ends of the spatial axes; negative numbers take voxels away."""
    config = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _depthwise_sum(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Sum over taps of shifted, scaled copies of the already padded x; float32 at least.

    The slices are static, so that a first axis which is sharded needs its neighbours' edges only.
    In 3D a barrier after each depth tap keeps the loops that XLA makes of it small.
    """
    nd = x.ndim - 2
    window = kernel.shape[:nd]
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides, strict=True)]
    kernel = kernel.astype(_accumulator(x))
    total, ahead, shape = 0.0, 0, (1,) * (nd + 1) + kernel.shape[-1:]
    for tap, y in _shifts(x, window, sizes, strides):
        if nd == 3 and tap[0] > ahead:
            total, ahead = lax.optimization_barrier(total), tap[0]
        # Sliced by lax: indexing takes several times as long to trace, and there are many taps.
        factor = lax.slice(kernel, (*tap, 0, 0), (*(t + 1 for t in tap), 1, shape[-1]))
        total = total + y.astype(kernel.dtype) * lax.reshape(factor, shape)
    return total.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_shifted(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array:
    """Depthwise convolution; arguments as those of `depthwise_conv`."""
    return _depthwise_sum(_pad(x, padding), kernel, strides)


def _forward(x, kernel, strides, padding):
    return depthwise_shifted(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, residuals, g):
    x, kernel = residuals
    dkernel = _kernel_gradient(_pad(x, padding), g, kernel.shape[:-2], strides)
    return _input_gradient(x, kernel, g, strides, padding), dkernel.astype(kernel.dtype)


depthwise_shifted.defvjp(_forward, _backward)


def _input_gradient(x, kernel, g, strides, padding):
    """The same operation with the kernel turned round, once for each place within a stride.

    Along an axis, `dx[s q + e] = sum_t kernel[t] g[q + (e + low - t) / s]` over the taps t for
    which the division leaves no rest.
    """
    nd = x.ndim - 2
    turned = lax.rev(kernel, tuple(range(nd)))
    axes = [
        _Axis.of(n, m, k, s, low)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:-1], g.shape[1:-1], kernel.shape[:nd], strides, padding, strict=True
        )
    ]
    g = _pad(g, tuple(axis.pad for axis in axes))
    places = []
    for place in itertools.product(*(axis.places for axis in axes)):
        if not all(place):
            shape = (axis.size for axis in axes)
            places.append(jnp.zeros((x.shape[0], *shape, x.shape[-1]), x.dtype))
            continue
        seen = g[(slice(None), *(first for first, _ in place))]
        places.append(_depthwise_sum(seen, turned[tuple(taps for _, taps in place)], (1,) * nd))
    if len(places) == 1:
        return places[0]
    dx = _interleaved(places, strides)
    return dx[(slice(None), *(slice(n) for n in x.shape[1:-1]))]


class _Axis(NamedTuple):
    """Geometry that the input's gradient needs along one axis.

    Attributes:
      size: places of one kind, at most one per output.
      pad: zeros around the output's gradient that serve all of them.
      places: for each place within a stride, what it sees of the padded gradient, and the taps of
        the turned kernel it sees that with; None if there are none.
    """

    size: int
    pad: tuple[int, int]
    places: tuple[tuple[slice, slice] | None, ...]

    @classmethod
    def of(cls, n: int, outputs: int, taps: int, stride: int, low: int) -> "_Axis":
        """Windows for n inputs, outputs and taps, with `low` zeros before the first input."""
        size, found = -(-n // stride), []
        for e in range(stride):
            own = range((e + low) % stride, taps, stride)
            # Input s q + e sees output q + first and those after it, with the last tap first.
            found.append(((e + low - own[-1]) // stride, own) if own else None)
        firsts = [first for first, _ in filter(None, found)]
        ends = [first + size + len(own) - 1 for first, own in filter(None, found)]
        before, after = -min(firsts), max(ends) - outputs
        places = []
        for place in found:
            if place is not None:
                first, own = place
                start = first + before
                last = taps - 1 - own[-1]  # in the turned kernel
                place = (
                    slice(start, start + size + len(own) - 1),
                    slice(last, last + (len(own) - 1) * stride + 1, stride),
                )
            places.append(place)
        return cls(size, (before, after), tuple(places))


def _interleaved(places: Sequence[jax.Array], strides: Sequence[int]) -> jax.Array:
    """Arrays `(b, *spatial, c)`, one for each place in a block, as one `(b, *(s spatial), c)`.

    By selection: a concatenation would be written before it is rearranged.
    """
    places = lax.optimization_barrier(list(places))  # else each would be computed for all
    batch, *spatial, channels = places[0].shape
    each = [size for n in spatial for size in (n, 1)]
    number = jnp.arange(math.prod(strides)).reshape(1, *(m for s in strides for m in (1, s)), 1)
    dx = places[0].reshape(batch, *each, channels)
    for i, place in enumerate(places[1:], 1):
        dx = jnp.where(number == i, place.reshape(batch, *each, channels), dx)
    return dx.reshape(batch, *(n * s for n, s in zip(spatial, strides, strict=True)), channels)


def _cut(x: jax.Array, start: tuple[int, int], size: tuple[int, int]) -> jax.Array:
    """A rectangle of every slice of x, `(b, depth, h, w, c)`."""
    (i, j), (h, w), (batch, depth, *_, channels) = start, size, x.shape
    return lax.slice(x, (0, 0, i, j, 0), (batch, depth, i + h, j + w, channels))


def _kernel_gradient(padded, g, window, strides):
    """The kernel's gradient, `(*window, 1, c)`, float32 at least.

    `dk[t] = sum_p x[s p + t] g[p]`, taken as a convolution of x by the gradient: for each slice and
    each depth tap, a few neighbouring voxels p at a time add what the window sees from them. So the
    inner loop runs over window and channels, without a reduction; depth is never cut, as it may be
    sharded.
    """
    if g.ndim == 4:
        flat = _kernel_gradient(padded[:, None], g[:, None], (1, *window), (1, *strides))
        return flat[0]
    kd, kh, kw = window
    (sd, sh, sw), (batch, depth, height, width, channels) = strides, g.shape
    cols = min(width, BLOCK)
    rows = min(height, max(BLOCK // cols, 1))
    down, across = -(-height // rows), -(-width // cols)
    wide = _accumulator(g)
    # Whole blocks: voxels that are not there have no gradient.
    g = _pad(g, ((0, 0), (0, down * rows - height), (0, across * cols - width)))
    size = [(down * rows - 1) * sh + kh, (across * cols - 1) * sw + kw]
    size = zip(size, padded.shape[2:4], strict=True)
    padded = _pad(padded, ((0, 0), *((0, wanted - n) for wanted, n in size)))

    # Else what made them would be computed again for every view.
    padded, g = lax.optimization_barrier((padded, g))

    def add_block(n, totals):
        row, col = n // across * rows, n % across * cols
        seen = lax.dynamic_slice(
            padded,
            (0, 0, row * sh, col * sw, 0),
            (batch, padded.shape[1], (rows - 1) * sh + kh, (cols - 1) * sw + kw, channels),
        ).astype(wide)
        own = lax.dynamic_slice(g, (0, 0, row, col, 0), (batch, depth, rows, cols, channels))
        own = own.astype(wide)
        found = []
        for t, total in enumerate(totals):
            part = lax.slice_in_dim(seen, t, t + (depth - 1) * sd + 1, sd, 1)
            for i, j in itertools.product(range(rows), range(cols)):
                view = _cut(part, (i * sh, j * sw), (kh, kw))
                total = total + view * _cut(own, (i, j), (1, 1))
            found.append(total)
        return tuple(found)

    totals = (jnp.zeros((batch, depth, kh, kw, channels), wide),) * kd
    if down * across == 1:
        totals = add_block(0, totals)
    else:
        totals = lax.fori_loop(0, down * across, add_block, totals)
    return jnp.stack([jnp.sum(total, (0, 1)) for total in totals])[..., None, :]
