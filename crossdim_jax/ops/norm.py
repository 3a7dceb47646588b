"""Normalisation with its activation, as one operation."""

import functools

import jax
import jax.numpy as jnp

ACTIVATIONS = {
    None: lambda x: x,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "hard_swish": jax.nn.hard_swish,
}


def _statistics(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Mean and variance over some axes, which are kept; in float32 at least."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axes, keepdims=True)
    # Centred before squaring: one pass more, and no cancellation where the mean is large.
    return mean, jnp.mean(jnp.square(wide - mean), axes, keepdims=True)


def _voxels(x: jax.Array) -> tuple[int, ...]:
    """The axes an instance norm measures."""
    return tuple(range(1, x.ndim - 1))


def _per_channel(v: jax.Array, x: jax.Array) -> jax.Array:
    return v.reshape((1,) * (x.ndim - 1) + (-1,))


def _reference(x, scale, bias, eps, activation, axes):
    mean, variance = _statistics(x, axes)
    scale, bias = (_per_channel(v, x).astype(mean.dtype) for v in (scale, bias))
    y = (x.astype(mean.dtype) - mean) * (jax.lax.rsqrt(variance + eps) * scale) + bias
    return ACTIVATIONS[activation](y).astype(x.dtype), mean, variance


def instance_norm_reference(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, activation: str | None = None
) -> jax.Array:
    """The plain form of `instance_norm`, differentiated by jax."""
    return _reference(x, scale, bias, eps, activation, _voxels(x))[0]


def instance_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, activation: str | None = None
) -> jax.Array:
    """Normalises every channel of every sample over its voxels, then scales, shifts, activates.

    The backward pass keeps only the input and two numbers per channel, not the normalised or
    activated tensors.

    Args:
      x: `(b, *spatial, c)`; statistics are float32 whatever its dtype.
      scale: `(c,)`.
      bias: `(c,)`.
      eps: added to the variance.
      activation: a key of `ACTIVATIONS`.

    Returns:
      `(b, *spatial, c)` in the dtype of x.

    Reference: Ulyanov et al. 2016.
    """
    return _normalise(x, scale, bias, eps, activation, _voxels(x))[0]


def batch_norm_reference(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, activation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The plain form of `batch_norm`, differentiated by jax."""
    y, *statistics = _reference(x, scale, bias, eps, activation, tuple(range(x.ndim - 1)))
    return y, *(jax.lax.stop_gradient(v.reshape(-1)) for v in statistics)


def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, activation: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises every channel over all voxels of the batch, then scales, shifts, activates.

    The backward pass keeps as little as that of `instance_norm`. Where the batch is spread over
    devices, the statistics are those of the whole.

    Args:
      x, scale, bias, eps, activation: as those of `instance_norm`.

    Returns:
      `(b, *spatial, c)` in the dtype of x; and mean and biased variance, `(c,)` float32, for
      running statistics: no gradient flows through them.

    Reference: Ioffe and Szegedy 2015.
    """
    y, *statistics = _normalise(x, scale, bias, eps, activation, tuple(range(x.ndim - 1)))
    return y, *(jax.lax.stop_gradient(v.reshape(-1)) for v in statistics)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalise(x, scale, bias, eps, activation, axes):
    return _reference(x, scale, bias, eps, activation, axes)


def _normalise_fwd(x, scale, bias, eps, activation, axes):
    y, mean, variance = _reference(x, scale, bias, eps, activation, axes)
    return (y, mean, variance), (x, scale, bias, mean, jax.lax.rsqrt(variance + eps))


def _normalise_bwd(eps, activation, axes, residuals, gradients):
    x, scale, bias, mean, rstd = residuals
    g = gradients[0]  # the statistics' own are not differentiated
    # Else the normalised input may be computed long before its gradient is there, and kept.
    x, mean, rstd, g = jax.lax.optimization_barrier((x, mean, rstd, g))
    s, b = (_per_channel(v, x).astype(mean.dtype) for v in (scale, bias))
    normal = (x.astype(mean.dtype) - mean) * rstd
    before, g = normal * s + b, g.astype(mean.dtype)
    if activation is not None:
        (g,) = jax.vjp(ACTIVATIONS[activation], before)[1](g)
    # Over the axes: sum of the gradient, and of the gradient times the normalised input.
    g_sum = jnp.sum(g, axes, keepdims=True)
    g_dot = jnp.sum(g * normal, axes, keepdims=True)
    count = x.size // mean.size
    dx = (s * rstd) * (g - (g_sum + normal * g_dot) / count)
    dscale = jnp.sum(g_dot, tuple(range(x.ndim - 1))).astype(scale.dtype)
    dbias = jnp.sum(g_sum, tuple(range(x.ndim - 1))).astype(bias.dtype)
    return dx.astype(x.dtype), dscale, dbias


_normalise.defvjp(_normalise_fwd, _normalise_bwd)
