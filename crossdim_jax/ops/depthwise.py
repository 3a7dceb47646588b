"""Depthwise convolution for CPUs: shifted multiply-adds, 2D and 3D.

XLA's CPU backend computes a grouped 3D convolution 50 to 200 times slower than it need be, and its
kernel's gradient as a dense convolution of which all but the diagonal is thrown away.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from crossdim_jax.ops.blocks import depth_to_space

Padding = tuple[tuple[int, int], ...]

# Taps up to which a kernel's gradient is computed row by row.
SMALL_WINDOW = 3**3


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
    kernel = kernel[..., 0, :].astype(_accumulator(x))
    total, ahead = 0.0, 0
    for tap, y in _shifts(x, window, sizes, strides):
        if nd == 3 and tap[0] > ahead:
            total, ahead = lax.optimization_barrier(total), tap[0]
        total = total + y.astype(kernel.dtype) * kernel[tap].reshape((1,) * (nd + 1) + (-1,))
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
    places = []
    for place in itertools.product(*(range(s) for s in strides)):
        taps, pads = [], []
        for axis, (e, s, (low, _)) in enumerate(zip(place, strides, padding, strict=True)):
            own = [t for t in range(kernel.shape[axis]) if (e + low - t) % s == 0][::-1]
            # Output q sees g[q + first] and those after it, the last tap first.
            first = (e + low - own[0]) // s if own else 0
            size = -(-x.shape[1 + axis] // s)
            taps.append(own)
            pads.append((-first, size + first + len(own) - 1 - g.shape[1 + axis]))
        if not all(taps):
            shape = (-(-n // s) for n, s in zip(x.shape[1:-1], strides, strict=True))
            places.append(jnp.zeros((x.shape[0], *shape, x.shape[-1]), x.dtype))
            continue
        part = kernel[np.ix_(*taps)]
        places.append(_depthwise_sum(_pad(g, tuple(pads)), part, (1,) * nd).astype(x.dtype))
    if len(places) == 1:
        return places[0]
    dx = depth_to_space(jnp.concatenate(places, -1), strides)
    return dx[(slice(None), *(slice(n) for n in x.shape[1:-1]))]


def _kernel_gradient(padded, g, window, strides):
    """One reduction per tap; float32 at least, `(*window, 1, c)`.

    Small 3D windows take a row of the second axis at a time, which stays in the cache; large ones a
    tap of the second axis at a time, as the program would be long otherwise.
    """
    nd, wide = g.ndim - 2, g.astype(_accumulator(g))
    axes = tuple(range(nd + 1))

    def reduced(x, g, window):
        sums = [
            jnp.sum(y.astype(wide.dtype) * g, axes)
            for _, y in _shifts(x, window, g.shape[1:-1], strides)
        ]
        return jnp.stack(sums)

    shape = (*window, 1, g.shape[-1])
    if nd == 2:
        return reduced(padded, wide, window).reshape(shape)
    rows, step = g.shape[2], strides[1]
    if math.prod(window) <= SMALL_WINDOW:

        def add_row(h, total):
            seen = lax.dynamic_slice_in_dim(padded, h * step, window[1], 2)
            return total + reduced(seen, lax.dynamic_slice_in_dim(wide, h, 1, 2), window)

        total = jnp.zeros((math.prod(window), g.shape[-1]), wide.dtype)
        return lax.fori_loop(0, rows, add_row, total).reshape(shape)

    def one_tap(i):
        seen = lax.dynamic_slice_in_dim(padded, i, (rows - 1) * step + 1, 2)
        return reduced(seen, wide, (window[0], 1, window[2]))

    by_row_tap = lax.map(one_tap, jnp.arange(window[1]))
    by_row_tap = by_row_tap.reshape(window[1], window[0], window[2], 1, -1)
    return jnp.moveaxis(by_row_tap, 0, 1)
