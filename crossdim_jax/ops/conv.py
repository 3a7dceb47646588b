"""Dense, depthwise and transposed convolutions, 2D and 3D from one body of code.

Arrays are `(batch, *spatial, channels)`, kernels `(*window, in / groups, out)`. XLA's CPU backend
sends 3D convolutions down a slow path, and turns the kernel gradient of a grouped convolution into
a dense one that is masked afterwards; the fast forms here avoid both. GPUs and TPUs have good
native convolutions, so there the plain form is chosen, but for the transposed convolution, whose
gradient is slow everywhere.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from crossdim_jax.errors import ConfigError, check_name, unknown_name
from crossdim_jax.ops import blocks
from crossdim_jax.ops.dense import conv3d_folded
from crossdim_jax.ops.depthwise import depthwise_shifted
from crossdim_jax.ops.strided import conv_depth_strided
from crossdim_jax.ops.windows import Padding

PADDINGS = ("same", "symmetric")
MODES = ("auto", "lax", "fast", "unfolded")


def choose(mode: str = "auto", *, backend: str | None = None, depth_shards: int = 1) -> str:
    """Says which formulation is used: "lax", "fast" or "unfolded".

    This is the one place where it is decided. "lax" is XLA's own convolutions; "fast" the forms of
    this package; "unfolded" the same for volumes whose depth devices share, where XLA would gather
    some forms: the folded one of `up_concat_conv`, on a grid of n + 1 positions, and groups of
    slices. Within "fast", forms differ by shape; each says where (`dense`, `depthwise`, `fold`).
    How "lax" aligns channels is said by `channel_multiple`.

    Args:
      mode: "auto" chooses: on CPU "fast", or "unfolded" if the volume is shared; elsewhere "lax",
        as GPUs and TPUs have good native convolutions. Any other forces one.
      backend: a jax backend name; the default backend if None.
      depth_shards: the number of devices that share one volume along depth.

    Raises:
      ValueError: `mode` is unknown.
    """
    check_name("ops", mode, MODES)
    if mode != "auto":
        return mode
    if (backend or jax.default_backend()) != "cpu":
        return "lax"
    return "unfolded" if depth_shards > 1 else "fast"


def explicit_padding(
    spatial: Sequence[int], window: Sequence[int], strides: Sequence[int], convention: str
) -> Padding:
    """Padding per axis as `((low, high), ...)` for a named convention.

    Args:
      spatial: input sizes.
      window: kernel sizes.
      strides: strides.
      convention: "same" as TensorFlow pads (asymmetric at stride 2, depends on the input size), or
        "symmetric" as PyTorch models pad: `k // 2` on both sides, one less at the low end of an
        even window.

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
        return tuple(((k - 1) // 2, k // 2) for k in window)
    raise ConfigError(unknown_name("padding", convention, PADDINGS))


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
    nd, chosen = x.ndim - 2, choose(mode)
    strides = tuple(strides)
    if all(k == 1 for k in kernel.shape[:nd]) and not any(map(any, padding)):
        # A 1x1 convolution is a matrix product.
        if any(s != 1 for s in strides):
            x = x[(slice(None), *(slice(None, None, s) for s in strides))]
        matrix = kernel.reshape(kernel.shape[-2:])
        if math.prod(x.shape[:-1]) == 1 and chosen != "lax":
            return _of_one_voxel(x, matrix)
        return jnp.einsum("...i,io->...o", x, matrix)
    if nd == 3 and chosen != "lax":
        if strides[0] > 1 and set(strides[1:]) == {1}:
            return conv_depth_strided(x, kernel, strides[0], tuple(padding))
        return conv3d_folded(x, kernel, strides, tuple(padding), chosen == "unfolded")
    return conv_aligned(x, kernel, strides, padding, channel_multiple(x.dtype))


def _of_one_voxel(x: jax.Array, matrix: jax.Array) -> jax.Array:
    """`x (1..., i) @ matrix (i, o)` as a sum: XLA's CPU compiler takes long over such products."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    product = x.reshape(-1, 1).astype(wide) * matrix.astype(wide)
    return product.sum(0).astype(x.dtype).reshape(*x.shape[:-1], -1)


def channel_multiple(dtype: jnp.dtype, *, backend: str | None = None) -> int:
    """Number that a dense convolution's channels should be a multiple of.

    8 for bfloat16 on a GPU: tensor cores want that, and XLA pads channels for float16 only.

    Args:
      dtype: of the input.
      backend: a jax backend name; the default backend if None.
    """
    wants = (backend or jax.default_backend()) == "gpu" and dtype == jnp.bfloat16
    return 8 if wants else 1


def conv_aligned(
    x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Padding, multiple: int
) -> jax.Array:
    """`conv_lax` with channels filled up with zeros to a multiple, and cut again."""
    inputs, outputs = kernel.shape[-2:]
    more, beyond = -inputs % multiple, -outputs % multiple
    if more:
        x = jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, more),))
    if more or beyond:
        kernel = jnp.pad(kernel, ((0, 0),) * (kernel.ndim - 2) + ((0, more), (0, beyond)))
    y = conv_lax(x, kernel, strides, padding)
    return y[..., :outputs] if beyond else y


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
    if choose(mode) == "lax":
        return conv_lax(x, kernel, strides, padding, groups=x.shape[-1])
    if x.ndim == 4:  # as a volume of one slice: its kernel gradient goes row by row
        strides, padding = (1, *strides), ((0, 0), *padding)
        return depthwise_shifted(x[:, None], kernel[None], strides, padding)[:, 0]
    return depthwise_shifted(x, kernel, tuple(strides), tuple(padding))


def upsample_conv_lax(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The plain transposed convolution whose stride is its window, the reference."""
    nd = x.ndim - 2
    flipped = kernel[(slice(None, None, -1),) * nd]
    return lax.conv_transpose(
        x, flipped, kernel.shape[:nd], "VALID", dimension_numbers=_dimension_numbers(nd)
    )


def upsample_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Transposed convolution whose stride is its window, 1 or 2 along each axis.

    Windows do not overlap, so it is one matrix product and a rearrangement; `lax.conv_transpose`
    is never used, as its gradient is orders of magnitude slower on CPU and gathers whole tensors
    when they are sharded.

    Args:
      x: `(b, *spatial, c_in)`.
      kernel: `(*window, c_in, c_out)`; the output at `window * p + d` is `x[p] @ kernel[d]`.

    Returns:
      `(b, *(window * spatial), c_out)`.
    """
    nd = x.ndim - 2
    window = kernel.shape[:nd]
    flat = jnp.moveaxis(kernel, -2, 0).reshape(kernel.shape[-2], -1)
    return blocks.depth_to_space(x @ flat, window)
