"""Convolutions of every kind the networks use, 2D and 3D from one body of code.

The rank is read from the input, `x.ndim - 2`; arrays are `(batch, *spatial, channels)`. Parameters
are float32 whatever the compute dtype, and have the same names in 2D and 3D.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.errors import check_name
from crossdim_jax.models.initial import scaled_normal, zeros

# jnp.pad's word for each way of padding the depth axis.
DEPTH_PADDINGS = {"zero": "constant", "edge": "edge", "reflect": "reflect"}


@dataclasses.dataclass(frozen=True)
class Depth:
    """Behaviour of a convolution along the depth of a volume; in 2D it says nothing.

    Attributes:
      window: taps along depth, for convolutions that have more than one in the plane; None: as
        many as there.
      stride: along depth; None: as in the plane.
      padding: a key of `DEPTH_PADDINGS`: what lies beyond the first and the last slice.
      factorised: whether a depthwise (or grouped) convolution is one in the plane, then a filter
        along depth for every channel.
    """

    window: int | None = None
    stride: int | None = None
    padding: str = "zero"
    factorised: bool = False

    def axes(self, window: int, stride: int, nd: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Window and stride per axis of a convolution in nd dimensions."""
        windows, strides = (window,) * nd, (stride,) * nd
        if nd == 3 and window > 1 and self.window is not None:
            windows = (self.window, *windows[1:])
        if nd == 3 and self.stride is not None:
            strides = (self.stride, *strides[1:])
        return windows, strides

    def unstrided(self) -> "Depth":
        """The same for a convolution without a stride."""
        return dataclasses.replace(self, stride=None)


IN_PLANE = Depth()  # depth is an axis like the others


def check_depth_padding(padding: str) -> None:
    """Raises ValueError, listing the known paddings, unless this is one."""
    check_name("depth_padding", padding, DEPTH_PADDINGS)


def pad_depth(
    x: jax.Array,
    windows: Sequence[int],
    strides: Sequence[int],
    convention: str,
    depth_padding: str,
) -> tuple[jax.Array, tuple[tuple[int, int], ...]]:
    """Pads the depth of a volume where zeros will not do.

    Args:
      x: `(b, *spatial, c)`.
      windows, strides: per axis.
      convention: "same" or "symmetric", see `ops.explicit_padding`; or "none", for windows that do
        not overlap: in the plane those that are whole count, as in PyTorch; along depth the last
        part of one is filled up.
      depth_padding: a key of `DEPTH_PADDINGS`.

    Returns:
      x, longer along depth unless that is padded with zeros; and the zeros per axis that are left
      to the convolution. Every axis comes out at `ceil(size / stride)`, but for "none" in the
      plane.
    """
    if convention == "none":
        deep = len(windows) - 2
        sizes = x.shape[1 : 1 + deep], windows[:deep], strides[:deep]
        pads = (*ops.explicit_padding(*sizes, "same"), (0, 0), (0, 0))
    else:
        pads = ops.explicit_padding(x.shape[1:-1], windows, strides, convention)
    check_depth_padding(depth_padding)
    if len(windows) != 3 or depth_padding == "zero" or not any(pads[0]):
        return x, pads
    width = ((0, 0), pads[0], *((0, 0),) * (x.ndim - 2))
    return jnp.pad(x, width, DEPTH_PADDINGS[depth_padding]), ((0, 0), *pads[1:])


class Conv(nn.Module):
    """Convolution with a square or cubic window.

    Parameters: `kernel (*window, in / groups, features)`, with the experts as its first axis if it
    is conditional, and `bias`. Factorised in 3D, the kernel's window is `(1, k, k)`, and
    `depth_kernel (kd, 1, 1, 1, features)` follows it.

    Attributes:
      features: output channels; ignored by a grouped convolution, which keeps its input's.
      window: kernel size along every axis.
      stride: stride along every axis.
      padding: "same" (TensorFlow), "symmetric" (PyTorch) or "none", see `pad_depth`.
      use_bias: whether a bias is added.
      group_size: input channels per group; 1: depthwise, 0: all of them, a dense convolution.
      experts: how many kernels are mixed anew for each sample, see `Conv.__call__`; 0: ordinary.
      depth: what is different along depth.
      dtype: compute dtype.
      ops_mode: "auto", "lax", "fast" or "unfolded", see `ops.choose`.
    """

    features: int
    window: int = 3
    stride: int = 1
    padding: str = "same"
    use_bias: bool = False
    group_size: int = 0
    experts: int = 0
    depth: Depth = IN_PLANE
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        below: "Upsampled | None" = None,
        routing: jax.Array | None = None,
    ) -> jax.Array:
        """Convolves x, or `concat(upsampled below, x)` (window 3).

        See `ops.up_concat_conv` and `ops.nearest_concat_conv`.

        Args:
          x: `(b, *spatial, c)`.
          below: an upsampling to be done with this convolution.
          routing: `(b, experts)`: each sample's weights of the experts. Yang et al. 2019.
        """
        nd = x.ndim - 2
        windows, strides = self.depth.axes(self.window, self.stride, nd)
        c_in = x.shape[-1] + (below.channels if below else 0)
        features = c_in if self.group_size else self.features
        factorised = bool(self.depth.factorised and self.group_size and nd == 3 and windows[0] > 1)
        flat = (1, *windows[1:]) if factorised else windows
        x, kernel = x.astype(self.dtype), self._kernel((*flat, self.group_size or c_in, features))
        if below:
            plain = not (self.use_bias or self.group_size or self.experts)
            plain = plain and self.depth.padding == "zero"
            if set(windows) != {3} or set(strides) != {1} or not plain:
                raise ValueError("only a plain 3^n convolution can take an upsampled input")
            if below.kernel is None:
                coarse = below.x.astype(self.dtype)
                return ops.nearest_concat_conv(coarse, x, kernel, mode=self.ops_mode)
            return ops.up_concat_conv(
                below.x, x, below.kernel, below.bias, kernel, mode=self.ops_mode
            )
        if factorised:
            x = self._convolve(x, kernel, (1, *strides[1:]), routing)
            shape = (windows[0], 1, 1, 1, features)
            # The product has the variance that the dense kernel would be drawn with.
            along = self.param("depth_kernel", scaled_normal(1.0), shape).astype(self.dtype)
            x = self._grouped(x, along, (strides[0], 1, 1), 1)
        else:
            x = self._convolve(x, kernel, strides, routing)
        if self.use_bias:
            x = ops.add_bias(x, self.param("bias", zeros, (features,)))
        return x

    def _kernel(self, shape: tuple[int, ...]) -> jax.Array:
        """The kernel, or those that it is mixed of: mixing wants them in float32."""
        if self.experts:
            shape = (self.experts, *shape)
            return self.param("kernel", scaled_normal(2.0, leading=1), shape)
        return self.param("kernel", scaled_normal(2.0), shape).astype(self.dtype)

    def _convolve(self, x, kernel, strides, routing):
        """Convolution with the kernel, or with each sample's own mixture."""
        if not self.experts:
            return self._grouped(x, kernel, strides, self.group_size)
        mixed = jnp.tensordot(routing.astype(jnp.float32), kernel, 1).astype(self.dtype)

        def one(x, kernel):
            return self._grouped(x[None], kernel, strides, self.group_size)[0]

        return jax.vmap(one)(x, mixed)

    def _grouped(self, x, kernel, strides, group_size):
        nd = x.ndim - 2
        x, padding = pad_depth(x, kernel.shape[:nd], strides, self.padding, self.depth.padding)
        apply = ops.depthwise_conv if group_size == 1 else ops.grouped_conv
        apply = apply if group_size else ops.conv
        return apply(x, kernel, strides=strides, padding=padding, mode=self.ops_mode)


class Upsampled(NamedTuple):
    """An upsampling that is still to be done: `Conv` folds it.

    A transposed convolution, or without kernel and bias nearest-neighbour to the other input's
    size.
    """

    x: jax.Array
    kernel: jax.Array | None = None
    bias: jax.Array | None = None

    @property
    def channels(self) -> int:
        """Channels of the upsampled tensor."""
        return (self.x if self.kernel is None else self.kernel).shape[-1]


class UpConv(nn.Module):
    """Transposed convolution that doubles the axes it is told to; it keeps the channels.

    It is not computed here: the convolution that takes its output does both at once.

    Attributes:
      factors: per axis, window and stride at once: 2 doubles, 1 leaves as it is; None: all 2.
      dtype: compute dtype.
    """

    factors: tuple[int, ...] | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Upsampled:
        nd, c = x.ndim - 2, x.shape[-1]
        window = self.factors or (2,) * nd
        # Windows do not overlap: each output voxel sums c inputs, not as many as flax counts.
        kernel = self.param("kernel", scaled_normal(math.prod(window)), (*window, c, c))
        bias = self.param("bias", zeros, (c,))
        return Upsampled(x.astype(self.dtype), kernel.astype(self.dtype), bias)


class DepthUpConv(nn.Module):
    """Transposed convolution along depth, which keeps the channels.

    Parameters: `kernel (window, 1, 1, in, out)` and `bias`. Slice p of the input adds to those at
    `stride * p - padding` and after; there are `stride * (depth - 1) + window - 2 * padding`.

    Attributes:
      window, stride, padding: along depth, as PyTorch's `ConvTranspose3d` takes them.
      dtype: compute dtype.
    """

    window: int
    stride: int
    padding: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        # Each output slice sums so many windows on average.
        kernel = self.param("kernel", scaled_normal(float(self.stride)), (self.window, 1, 1, c, c))
        bias = self.param("bias", zeros, (c,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = bias.reshape(1, 1, 1, 1, -1)  # and the sum in float32, as `ops.add_bias` has it
        for tap in range(self.window):
            width = [(0, 0, 0)] * x.ndim
            low, high = tap - self.padding, self.window - 1 - tap - self.padding
            width[1] = (low, high, self.stride - 1)
            y = y + jax.lax.pad(x @ kernel[tap, 0, 0], jnp.zeros((), x.dtype), width)
        return y.astype(x.dtype)


class Blur(nn.Module):
    """Binomial blur (1, 2, 1) / 4 along every axis that has a stride, then the stride.

    Zero padding in the plane, whatever the padding of the convolutions. Reference: Zhang 2019.

    Attributes:
      stride, depth, ops_mode: as in `Conv`; depth's window does not matter.
    """

    stride: int = 2
    depth: Depth = IN_PLANE
    ops_mode: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        nd = x.ndim - 2
        _, strides = self.depth.axes(3, self.stride, nd)
        kernel = np.ones((1,) * nd, np.float32)
        for axis, stride in enumerate(strides):
            taps = np.array([0.25, 0.5, 0.25] if stride > 1 else [1.0], np.float32)
            kernel = kernel * np.expand_dims(taps, [a for a in range(nd) if a != axis])
        x, padding = pad_depth(x, kernel.shape, strides, "symmetric", self.depth.padding)
        kernel = jnp.asarray(np.repeat(kernel[..., None, None], x.shape[-1], -1), x.dtype)
        return ops.depthwise_conv(x, kernel, strides=strides, padding=padding, mode=self.ops_mode)
