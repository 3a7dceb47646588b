"""The layers all networks share, 2D and 3D from one body of code.

The rank is read from the input, `x.ndim - 2`; arrays are `(batch, *spatial, channels)`. Parameters
are float32 whatever the compute dtype, and have the same names in 2D and 3D.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops

NORMS = ("batch", "instance", "group")


def scaled_normal(scale: float):
    """An initialiser: normal with variance `scale / fan_in`, fan_in counting the window's taps.

    Draws are padded to a power of two, so that initialising outside of `jit` compiles a dozen
    small programs instead of one per kernel shape: seconds instead of minutes for a whole network.
    Inside of `jit` the numbers are the same.
    """

    def draw(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        size = math.prod(shape)
        values = jax.random.normal(key, (1 << (size - 1).bit_length(),), dtype)
        if not isinstance(values, jax.core.Tracer):
            values = np.asarray(values)
        values = values[:size].reshape(shape)
        return jnp.asarray(values * math.sqrt(scale / math.prod(shape[:-1])), dtype)

    return draw


class Conv(nn.Module):
    """Convolution with a cubic window.

    Attributes:
      features: output channels; ignored by a depthwise convolution, which keeps its input's.
      window: kernel size along every axis.
      stride: stride along every axis.
      padding: "same" (TensorFlow) or "symmetric" (PyTorch), see `ops.explicit_padding`.
      use_bias: whether a bias is added.
      depthwise: one window per channel.
      dtype: compute dtype.
      ops_mode: "auto", "lax" or "fast", see `ops.choose`.
    """

    features: int
    window: int = 3
    stride: int = 1
    padding: str = "same"
    use_bias: bool = False
    depthwise: bool = False
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, below: "Upsampled | None" = None) -> jax.Array:
        """Convolves x, or `concat(upsampled below, x)` (window 3), see `ops.up_concat_conv`."""
        nd = x.ndim - 2
        window, strides = (self.window,) * nd, (self.stride,) * nd
        c_in = x.shape[-1] + (below.kernel.shape[-1] if below else 0)
        groups_in = 1 if self.depthwise else c_in
        features = x.shape[-1] if self.depthwise else self.features
        kernel = self.param("kernel", scaled_normal(2.0), (*window, groups_in, features))
        if below:
            if (self.window, self.stride, self.use_bias, self.depthwise) != (3, 1, False, False):
                raise ValueError("only a plain 3^n convolution can take an upsampled input")
            return ops.up_concat_conv(
                *below[:1],
                x.astype(self.dtype),
                *below[1:],
                kernel.astype(self.dtype),
                mode=self.ops_mode,
            )
        padding = ops.explicit_padding(x.shape[1:-1], window, strides, self.padding)
        apply = ops.depthwise_conv if self.depthwise else ops.conv
        x = apply(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            strides=strides,
            padding=padding,
            mode=self.ops_mode,
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (features,))
            x = x + bias.astype(self.dtype).reshape((1,) * (nd + 1) + (-1,))
        return x


class Upsampled(NamedTuple):
    """A transposed convolution (window 2, stride 2) that is still to be done: `Conv` folds it."""

    x: jax.Array
    kernel: jax.Array
    bias: jax.Array


class UpConv(nn.Module):
    """Transposed convolution with window 2 and stride 2: doubles every axis, keeps the channels.

    It is not computed here: the convolution that takes its output does both at once.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Upsampled:
        nd, c = x.ndim - 2, x.shape[-1]
        # Windows do not overlap: each output voxel sums c inputs, not the 2^nd c that flax counts.
        kernel = self.param("kernel", scaled_normal(2.0**nd), (*(2,) * nd, c, c))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        return Upsampled(*(a.astype(self.dtype) for a in (x, kernel, bias)))


class Norm(nn.Module):
    """Normalisation over voxels, then an activation.

    Attributes:
      kind: "batch" (running statistics in the collection `batch_stats`), "instance" or "group"
        (groups of 8 channels, or the largest divisor below).
      activation: a key of `ops.ACTIVATIONS`.
      eps: added to the variance.
      momentum: decay of the running statistics of "batch".
      dtype: compute dtype; statistics are float32.
    """

    kind: str = "batch"
    activation: str | None = None
    eps: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        c = x.shape[-1]
        check_norm(self.kind)
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        if self.kind == "instance":
            return ops.instance_norm(x, scale, bias, eps=self.eps, activation=self.activation)
        wide = x.astype(jnp.float32)
        if self.kind == "batch":
            mean, variance = self._batch_statistics(wide, train)
        else:
            mean, variance = self._group_statistics(wide)
        wide = (wide - mean) * jax.lax.rsqrt(variance + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        wide = wide * scale.reshape(shape) + bias.reshape(shape)
        return ops.ACTIVATIONS[self.activation](wide).astype(self.dtype)

    def _batch_statistics(self, x, train):
        c, shape = x.shape[-1], (1,) * (x.ndim - 1) + (-1,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (c,))
        variance = self.variable("batch_stats", "var", jnp.ones, (c,))
        if not train:
            return mean.value.reshape(shape), variance.value.reshape(shape)
        axes = tuple(range(x.ndim - 1))
        now_mean = jnp.mean(x, axes)
        now_variance = jnp.mean(jnp.square(x - now_mean.reshape(shape)), axes)
        if not self.is_initializing():
            keep, count = self.momentum, x.size // c
            # Running variances are unbiased, as PyTorch keeps them.
            unbiased = now_variance * (count / max(count - 1, 1))
            mean.value = keep * mean.value + (1 - keep) * now_mean
            variance.value = keep * variance.value + (1 - keep) * unbiased
        return now_mean.reshape(shape), now_variance.reshape(shape)

    def _group_statistics(self, x):
        c = x.shape[-1]
        size = next(s for s in range(min(8, c), 0, -1) if c % s == 0)
        grouped = x.reshape(*x.shape[:-1], c // size, size)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean = jnp.mean(grouped, axes, keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
        spread = (x.shape[0], *(1,) * (x.ndim - 2), c)
        shape = (*mean.shape[:-1], size)
        return (jnp.broadcast_to(v, shape).reshape(spread) for v in (mean, variance))


def check_norm(kind: str) -> None:
    """Raises ValueError, listing the known norms, unless this is one."""
    if kind not in NORMS:
        raise ValueError(f"norm={kind!r} is unknown; known: {', '.join(NORMS)}")


class ConvNormAct(nn.Module):
    """Convolution without bias, normalisation, activation."""

    features: int
    window: int = 3
    stride: int = 1
    padding: str = "same"
    norm: str = "instance"
    activation: str | None = "silu"
    eps: float = 1e-5
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, below: Upsampled | None = None, train: bool = False
    ) -> jax.Array:
        """Of x, or of `concat(upsampled below, x)`."""
        x = Conv(
            self.features,
            self.window,
            self.stride,
            self.padding,
            dtype=self.dtype,
            ops_mode=self.ops_mode,
            name="conv",
        )(x, below=below)
        norm = Norm(self.norm, self.activation, self.eps, dtype=self.dtype, name="norm")
        return norm(x, train=train)


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over all voxels: reduce, SiLU, expand, sigmoid.

    Reference: Hu et al. 2018, as in Tan and Le 2019.
    """

    reduced: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim - 1))
        gate = jnp.mean(x.astype(jnp.float32), axes, keepdims=True).astype(self.dtype)
        gate = Conv(self.reduced, 1, use_bias=True, dtype=self.dtype, name="conv_reduce")(gate)
        gate = jax.nn.silu(gate)
        gate = Conv(x.shape[-1], 1, use_bias=True, dtype=self.dtype, name="conv_expand")(gate)
        return x * jax.nn.sigmoid(gate)


class DropPath(nn.Module):
    """Stochastic depth: a residual branch is dropped for whole samples while training.

    Needs the random stream `dropout`. Reference: Huang et al. 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep, jnp.zeros((), x.dtype))


def require_multiple(spatial: Sequence[int], divisor: int, network: str) -> None:
    """Raises ValueError, with the sizes that fit, unless all are multiples of `divisor`."""
    if any(n % divisor or n == 0 for n in spatial):
        fits = tuple(max(divisor, -(-n // divisor) * divisor) for n in spatial)
        raise ValueError(
            f"{network} halves its input five times: spatial sizes must be multiples of {divisor}, "
            f"found {tuple(spatial)}; the next larger that fits is {fits}"
        )
