"""Dense, depthwise and transposed convolutions, 2D and 3D from one body of code.

Arrays are `(batch, *spatial, channels)`, kernels `(*window, in / groups, out)`. XLA's CPU backend
sends 3D convolutions down a slow path, and turns the kernel gradient of a grouped convolution into
a dense one that is masked afterwards; the fast forms here avoid both. GPUs and TPUs have good
native convolutions, so there the plain form is chosen, but for the transposed convolution, whose
gradient is slow everywhere.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

MODES = ("auto", "lax", "fast")

Padding = tuple[tuple[int, int], ...]


def choose(mode: str = "auto", *, backend: str | None = None) -> str:
    """Says which formulation is used: "lax" or "fast".

    Args:
      mode: "auto" chooses by backend ("fast" on CPU, "lax" elsewhere); "lax" and "fast" force one.
      backend: a jax backend name; the default backend if None.

    Raises:
      ValueError: `mode` is unknown.
    """
    if mode not in MODES:
        raise ValueError(f"ops={mode!r} is unknown; known: {', '.join(MODES)}")
    if mode != "auto":
        return mode
    return "fast" if (backend or jax.default_backend()) == "cpu" else "lax"


def explicit_padding(
    spatial: Sequence[int], window: Sequence[int], strides: Sequence[int], convention: str
) -> Padding:
    """Padding per axis as `((low, high), ...)` for a named convention.

    Args:
      spatial: input sizes.
      window: kernel sizes.
      strides: strides.
      convention: "same" as TensorFlow pads (asymmetric at stride 2, depends on the input size), or
        "symmetric" as PyTorch models pad (`k // 2` on both sides).

    Raises:
      ValueError: the convention is unknown.
    """
    if convention == "same":
        totals = [
            max((-(-n // s) - 1) * s + k - n, 0)
            for n, k, s in zip(spatial, window, strides, strict=True)
        ]
        return tuple((t // 2, t - t // 2) for t in totals)
    if convention == "symmetric":
        return tuple((k // 2, k // 2) for k in window)
    raise ValueError(f"padding={convention!r} is unknown; known: same, symmetric")


def _dimension_numbers(ndim: int) -> lax.ConvDimensionNumbers:
    space = "DHW"[3 - ndim :]
    return lax.conv_dimension_numbers(
        (1,) * (ndim + 2), (1,) * (ndim + 2), (f"N{space}C", f"{space}IO", f"N{space}C")
    )


def conv_lax(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, groups: int = 1
) -> jax.Array:
    """The plain convolution, the reference for every other form."""
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_dimension_numbers(x.ndim - 2),
        feature_group_count=groups,
    )


def conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Padding,
    mode: str = "auto",
) -> jax.Array:
    """Dense convolution.

    Args:
      x: `(b, *spatial, c_in)`.
      kernel: `(*window, c_in, c_out)`.
      strides: one per spatial axis.
      padding: `((low, high), ...)`, one pair per spatial axis.
      mode: see `choose`.

    Returns:
      `(b, *spatial_out, c_out)`.
    """
    nd = x.ndim - 2
    strides = tuple(strides)
    if all(k == 1 for k in kernel.shape[:nd]) and not any(map(any, padding)):
        # A 1x1 convolution is a matrix product.
        if any(s != 1 for s in strides):
            x = x[(slice(None), *(slice(None, None, s) for s in strides))]
        return jnp.einsum("...i,io->...o", x, kernel.reshape(kernel.shape[-2:]))
    if nd == 3 and choose(mode) == "fast":
        return _conv3d_folded(x, kernel, strides, tuple(padding))
    return conv_lax(x, kernel, strides, padding)


def depthwise_conv(
    x: jax.Array,
    kernel: jax.Array,
    *,
    strides: Sequence[int],
    padding: Padding,
    mode: str = "auto",
) -> jax.Array:
    """Depthwise convolution: one window per channel.

    Args:
      x: `(b, *spatial, c)`.
      kernel: `(*window, 1, c)`.
      strides: one per spatial axis.
      padding: `((low, high), ...)`, one pair per spatial axis.
      mode: see `choose`.

    Returns:
      `(b, *spatial_out, c)`.
    """
    if choose(mode) == "fast":
        return _depthwise_shifted(x, kernel, tuple(strides), tuple(padding))
    return conv_lax(x, kernel, strides, padding, groups=x.shape[-1])


def upsample_conv_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The plain transposed convolution with window 2 and stride 2, the reference."""
    nd = x.ndim - 2
    flipped = kernel[(slice(None, None, -1),) * nd]
    return lax.conv_transpose(
        x, flipped, (2,) * nd, "VALID", dimension_numbers=_dimension_numbers(nd)
    )


def upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution with window 2 and stride 2 along every axis.

    Windows do not overlap, so it is one matrix product and a rearrangement; `lax.conv_transpose`
    is never used, as its gradient is orders of magnitude slower on CPU and gathers whole tensors
    when they are sharded.

    Args:
      x: `(b, *spatial, c_in)`.
      kernel: `(2, ..., 2, c_in, c_out)`; the output at `2 p + d` is `x[p] @ kernel[d]`.

    Returns:
      `(b, *(2 * spatial), c_out)`.
    """
    nd = x.ndim - 2
    batch, spatial, features = x.shape[0], x.shape[1:-1], kernel.shape[-1]
    flat = jnp.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1)
    return depth_to_space((x @ flat).reshape(batch, *spatial, *(2,) * nd, features), nd)


def depth_to_space(parts: jax.Array, nd: int) -> jax.Array:
    """`(b, *spatial, 2, ..., 2, c)` -> `(b, *(2 * spatial), c)`: the nd axes of 2 interleave."""
    spatial = parts.shape[1 : 1 + nd]
    # (b, d, h, w, 2, 2, 2, c) -> (b, d, 2, h, 2, w, 2, c)
    order = [0, *(a for i in range(nd) for a in (1 + i, 1 + nd + i)), 2 * nd + 1]
    shape = (parts.shape[0], *(2 * n for n in spatial), parts.shape[-1])
    return parts.transpose(order).reshape(shape)


# --- dense 3D as 2D convolutions with depth folded into the batch ------------------------------


def _depth_out(depth: int, window: int, stride: int, pad: tuple[int, int]) -> int:
    return (depth + sum(pad) - window) // stride + 1


def _conv3d_stacked(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array:
    """One 2D convolution gives the outputs of all depth taps, which are then shifted and added."""
    batch, depth = x.shape[:2]
    taps, out = kernel.shape[0], kernel.shape[-1]
    flat = jnp.moveaxis(kernel, 0, -2).reshape(*kernel.shape[1:4], taps * out)
    y = conv_lax(x.reshape(batch * depth, *x.shape[2:]), flat, strides[1:], padding[1:])
    y = y.reshape(batch, depth, *y.shape[1:3], taps, out)
    (low, high), step = padding[0], strides[0]
    size = _depth_out(depth, taps, step, padding[0])
    y = jnp.pad(y, ((0, 0), (low, high), (0, 0), (0, 0), (0, 0), (0, 0)))
    last = (size - 1) * step + 1
    return sum(y[:, t : t + last : step, :, :, t] for t in range(taps))


def _conv3d_summed(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Padding
) -> jax.Array:
    """One 2D convolution per depth tap, over the slices that tap sees; their sum."""
    batch, depth = x.shape[:2]
    taps = kernel.shape[0]
    step, size = strides[0], _depth_out(depth, taps, strides[0], padding[0])
    x = jnp.pad(x, ((0, 0), padding[0], (0, 0), (0, 0), (0, 0)))
    last = (size - 1) * step + 1
    total = 0
    for t in range(taps):
        slices = x[:, t : t + last : step]
        y = conv_lax(
            slices.reshape(batch * size, *slices.shape[2:]), kernel[t], strides[1:], padding[1:]
        )
        total = total + y
    return total.reshape(batch, size, *total.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv3d_folded(x, kernel, strides, padding):
    form = _conv3d_stacked if strides[0] == 1 else _conv3d_summed
    return form(x, kernel, strides, padding)


def _conv3d_folded_fwd(x, kernel, strides, padding):
    return _conv3d_folded(x, kernel, strides, padding), (x, kernel)


def _conv3d_folded_bwd(strides, padding, residuals, g):
    x, kernel = residuals
    # The summed form is the faster one for the kernel's gradient.
    (dkernel,) = jax.vjp(lambda k: _conv3d_summed(x, k, strides, padding), kernel)[1](g)
    if all(s == 1 for s in strides):
        # The input's gradient is the same operation with the kernel turned round.
        turned = jnp.swapaxes(kernel[::-1, ::-1, ::-1], -1, -2)
        back = tuple(
            (k - 1 - low, k - 1 - high)
            for k, (low, high) in zip(kernel.shape, padding, strict=False)
        )
        dx = _conv3d_stacked(g, turned, strides, back)
    else:
        (dx,) = jax.vjp(lambda x: _conv3d_summed(x, kernel, strides, padding), x)[1](g)
    return dx, dkernel


_conv3d_folded.defvjp(_conv3d_folded_fwd, _conv3d_folded_bwd)


# --- depthwise as shifted multiply-adds --------------------------------------------------------


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


def _pad(x: jax.Array, padding: Padding, interior: Sequence[int] | None = None) -> jax.Array:
    interior = interior or (0,) * len(padding)
    config = [(0, 0, 0), *((lo, hi, i) for (lo, hi), i in zip(padding, interior, strict=True))]
    return lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)])


def _depthwise_sum(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...]) -> jax.Array:
    """Sum over taps of shifted, scaled copies of the already padded x; float32 at least.

    In 3D the depth taps are a scan, so that the program stays small.
    """
    nd = x.ndim - 2
    window = kernel.shape[:nd]
    sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:-1], window, strides, strict=True)]
    kernel = kernel[..., 0, :].astype(_accumulator(x))

    def in_plane(x, kernel):
        total = 0.0
        for tap, y in _shifts(x, window[-2:], sizes[-2:], strides[-2:]):
            scale = kernel[tap].reshape((1,) * (y.ndim - 1) + (-1,))
            total = total + y.astype(kernel.dtype) * scale
        return total

    if nd == 2:
        return in_plane(x, kernel).astype(x.dtype)

    def add_tap(total, t):
        last = (sizes[0] - 1) * strides[0] + 1
        planes = lax.dynamic_slice_in_dim(x, t, last, 1)[:, :: strides[0]]
        return total + in_plane(planes, kernel[t]), None

    start = jnp.zeros((x.shape[0], *sizes, x.shape[-1]), kernel.dtype)
    return lax.scan(add_tap, start, jnp.arange(window[0]))[0].astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise_shifted(x, kernel, strides, padding):
    return _depthwise_sum(_pad(x, padding), kernel, strides)


def _depthwise_fwd(x, kernel, strides, padding):
    return _depthwise_shifted(x, kernel, strides, padding), (x, kernel)


def _depthwise_bwd(strides, padding, residuals, g):
    x, kernel = residuals
    nd = x.ndim - 2
    window = kernel.shape[:nd]
    # Input: the same operation on the dilated gradient, with the kernel turned round.
    back = tuple(
        (k - 1 - low, n + low - (m - 1) * s - 1)
        for n, m, k, s, (low, _) in zip(
            x.shape[1:-1], g.shape[1:-1], window, strides, padding, strict=True
        )
    )
    spread = _pad(g, back, [s - 1 for s in strides])
    dx = _depthwise_sum(spread, kernel[(slice(None, None, -1),) * nd], (1,) * nd)
    # Kernel: one reduction per tap.
    padded, axes = _pad(x, padding), tuple(range(nd + 1))
    wide = g.astype(_accumulator(g))

    def tap_sums(x):
        sums = [
            jnp.sum(y.astype(wide.dtype) * wide, axes)
            for _, y in _shifts(x, window[-2:], g.shape[-3:-1], strides[-2:])
        ]
        return jnp.stack(sums)

    if nd == 2:
        sums = tap_sums(padded)
    else:
        last = (g.shape[1] - 1) * strides[0] + 1

        def one_depth_tap(t):
            return tap_sums(lax.dynamic_slice_in_dim(padded, t, last, 1)[:, :: strides[0]])

        sums = lax.map(one_depth_tap, jnp.arange(window[0]))
    return dx, sums.reshape(kernel.shape).astype(kernel.dtype)


_depthwise_shifted.defvjp(_depthwise_fwd, _depthwise_bwd)
