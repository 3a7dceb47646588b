"""The layers all networks share, 2D and 3D from one body of code.

The rank is read from the input, `x.ndim - 2`; arrays are `(batch, *spatial, channels)`. Parameters
are float32 whatever the compute dtype, and have the same names in 2D and 3D.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax import ops
from crossdim_jax.errors import check_name
from crossdim_jax.models.conv import IN_PLANE, Conv, Depth, Upsampled
from crossdim_jax.models.initial import ones, zeros

NORMS = ("batch", "instance", "group", "frozen")


class Norm(nn.Module):
    """Normalisation over voxels, then an activation.

    Attributes:
      kind: "batch" (running statistics in the collection `batch_stats`), "frozen" (those
        statistics also while training, never updated), "instance" or "group".
      activation: a key of `ops.ACTIVATIONS`.
      eps: added to the variance.
      momentum: decay of the running statistics of "batch".
      group_size: channels in a group of "group", or the largest divisor below.
      affine: whether there are a scale and a bias.
      dtype: compute dtype; statistics are float32.
    """

    kind: str = "batch"
    activation: str | None = None
    eps: float = 1e-5
    momentum: float = 0.9
    group_size: int = 8
    affine: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        c = x.shape[-1]
        check_norm(self.kind)
        scale, bias = jnp.ones((c,)), jnp.zeros((c,))
        if self.affine:
            scale = self.param("scale", ones, (c,))
            bias = self.param("bias", zeros, (c,))
        if self.kind == "instance":
            return ops.instance_norm(x, scale, bias, eps=self.eps, activation=self.activation)
        if self.kind == "batch" and train:
            return self._batch(x, scale, bias)
        wide = x.astype(jnp.float32)
        if self.kind == "group":
            mean, variance = self._group_statistics(wide)
        else:
            running = self._running(c)
            mean, variance = (v.value.reshape((1,) * (x.ndim - 1) + (-1,)) for v in running)
        wide = (wide - mean) * jax.lax.rsqrt(variance + self.eps)
        shape = (1,) * (x.ndim - 1) + (-1,)
        wide = wide * scale.reshape(shape) + bias.reshape(shape)
        return ops.ACTIVATIONS[self.activation](wide).astype(self.dtype)

    def _running(self, c):
        """The running mean and variance, made if there are none."""
        return (
            self.variable("batch_stats", "mean", zeros, None, (c,)),
            self.variable("batch_stats", "var", ones, None, (c,)),
        )

    def _batch(self, x, scale, bias):
        """Normalises by the statistics of this batch, which enter the running ones.

        Where the collection `moments` is mutable they are written there instead: mean, biased
        variance, the number of values they are of, and the decay. The caller then makes the step.
        """
        c = x.shape[-1]
        mean, variance = self._running(c)
        y, now_mean, now_variance = ops.batch_norm(
            x, scale, bias, eps=self.eps, activation=self.activation
        )
        keep, count = self.momentum, x.size // c
        if self.is_mutable_collection("moments") and not self.is_initializing():
            now = {"mean": now_mean, "var": now_variance, "count": float(count), "keep": keep}
            for name, value in now.items():
                self.put_variable("moments", name, jnp.asarray(value, jnp.float32))
        elif not self.is_initializing():
            # Running variances are unbiased, as PyTorch keeps them.
            unbiased = now_variance * (count / max(count - 1, 1))
            mean.value = keep * mean.value + (1 - keep) * now_mean
            variance.value = keep * variance.value + (1 - keep) * unbiased
        return y.astype(self.dtype)

    def _group_statistics(self, x):
        c = x.shape[-1]
        size = next(s for s in range(min(self.group_size, c), 0, -1) if c % s == 0)
        grouped = x.reshape(*x.shape[:-1], c // size, size)
        axes = (*range(1, x.ndim - 1), x.ndim)
        mean = jnp.mean(grouped, axes, keepdims=True)
        variance = jnp.mean(jnp.square(grouped - mean), axes, keepdims=True)
        spread = (x.shape[0], *(1,) * (x.ndim - 2), c)
        shape = (*mean.shape[:-1], size)
        return (jnp.broadcast_to(v, shape).reshape(spread) for v in (mean, variance))


def check_norm(kind: str) -> None:
    """Raises ValueError, listing the known norms, unless this is one."""
    check_name("norm", kind, NORMS)


class ConvNormAct(nn.Module):
    """Convolution without bias, normalisation, activation."""

    features: int
    window: int = 3
    stride: int = 1
    padding: str = "same"
    norm: str = "instance"
    activation: str | None = "silu"
    eps: float = 1e-5
    affine: bool = True
    depth: Depth = IN_PLANE
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(
        self, x: jax.Array, *, below: Upsampled | None = None, train: bool = False
    ) -> jax.Array:
        """Output for x, or for `concat(upsampled below, x)`."""
        x = Conv(
            self.features,
            self.window,
            self.stride,
            self.padding,
            depth=self.depth,
            dtype=self.dtype,
            ops_mode=self.ops_mode,
            name="conv",
        )(x, below=below)
        norm = Norm(
            self.norm,
            self.activation,
            self.eps,
            affine=self.affine,
            dtype=self.dtype,
            name="norm",
        )
        return norm(x, train=train)


GATES = {"sigmoid": jax.nn.sigmoid, "hard_sigmoid": jax.nn.hard_sigmoid}


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over all voxels: reduce, activation, expand, gate.

    Attributes:
      reduced: channels in between.
      activation: a key of `ops.ACTIVATIONS`.
      dtype, ops_mode: as in `Conv`.
      gate: a key of `GATES`.

    Reference: Hu et al. 2018, as in Tan and Le 2019.
    """

    reduced: int
    activation: str | None = "silu"
    dtype: Any = jnp.float32
    ops_mode: str = "auto"
    gate: str = "sigmoid"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = tuple(range(1, x.ndim - 1))
        shared = {"use_bias": True, "dtype": self.dtype, "ops_mode": self.ops_mode}
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        gate = jnp.mean(wide, axes, keepdims=True).astype(self.dtype)
        gate = Conv(self.reduced, 1, name="conv_reduce", **shared)(gate)
        gate = ops.ACTIVATIONS[self.activation](gate)
        gate = Conv(x.shape[-1], 1, name="conv_expand", **shared)(gate)
        return ops.scale_channels(x, GATES[self.gate](gate))


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


def max_pool(
    x: jax.Array, window: int, stride: int, padding: str, depth: Depth, ops_mode: str = "auto"
) -> jax.Array:
    """Max pooling, in whose padding nothing is found.

    Along depth the window is that of the plane, no more than `depth.window`, and 1 where depth has
    no stride: a pooling that keeps the slices does not mix them.

    Args:
      x: `(b, *spatial, c)`.
      window, stride: in the plane.
      padding: "same" or "symmetric", see `ops.explicit_padding`; "none" where only whole windows of
        the plane count, as in PyTorch. Depth comes out at `ceil(size / stride)`.
      depth: its window and stride along depth.
      ops_mode: see `ops.choose`.
    """
    nd = x.ndim - 2
    windows, strides = depth.axes(window, stride, nd)
    if nd == 3:
        deep = 1 if strides[0] == 1 else min(window, windows[0])
        windows = (deep, *windows[1:])
    convention = "same" if padding == "none" else padding
    pads = ops.explicit_padding(x.shape[1:-1], windows, strides, convention)
    if padding == "none":
        pads = (*pads[: nd - 2], (0, 0), (0, 0))
    return ops.max_pool(x, windows, strides, pads, mode=ops_mode)


def require_multiple(spatial: Sequence[int], divisors: Sequence[int], network: str) -> None:
    """Raises ValueError, with the sizes that fit, unless each is a multiple of its divisor."""
    if any(n % d or n == 0 for n, d in zip(spatial, divisors, strict=True)):
        fits = tuple(max(d, -(-n // d) * d) for n, d in zip(spatial, divisors, strict=True))
        allowed = divisors[0] if len(set(divisors)) == 1 else tuple(divisors)
        raise ValueError(
            f"{network} reduces its input by {allowed}: spatial sizes must be multiples of "
            f"{allowed}, found {tuple(spatial)}; the next larger that fits is {fits}"
        )


def fold_slices(x: jax.Array) -> jax.Array:
    """Each channel of a volume as an image, whose channels are the slices.

    `(b, depth, h, w, c) -> (b c, h, w, depth)`.
    """
    return x.transpose(0, 4, 2, 3, 1).reshape(-1, *x.shape[2:4], x.shape[1])


def unfold_slices(x: jax.Array, batch: int) -> jax.Array:
    """The inverse: `(b c, h, w, depth) -> (b, depth, h, w, c)`."""
    return x.reshape(batch, -1, *x.shape[1:]).transpose(0, 4, 2, 3, 1)
