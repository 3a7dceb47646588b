"""Instance normalisation with its activation, as one operation."""

import functools

import jax
import jax.numpy as jnp

ACTIVATIONS = {
    None: lambda x: x,
    "silu": jax.nn.silu,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
}


def _statistics(x: jax.Array, eps: float) -> tuple[jax.Array, jax.Array]:
    """Mean and reciprocal standard deviation per sample and channel, in float32 at least."""
    axes = tuple(range(1, x.ndim - 1))
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, axes, keepdims=True)
    # Centred before squaring: one pass more, and no cancellation where the mean is large.
    variance = jnp.mean(jnp.square(wide - mean), axes, keepdims=True)
    return mean, jax.lax.rsqrt(variance + eps)


def _per_channel(v: jax.Array, x: jax.Array) -> jax.Array:
    return v.reshape((1,) * (x.ndim - 1) + (-1,))


def instance_norm_reference(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *, eps: float, activation: str | None = None
) -> jax.Array:
    """The plain form of `instance_norm`, differentiated by jax."""
    mean, rstd = _statistics(x, eps)
    scale, bias = (_per_channel(v, x).astype(mean.dtype) for v in (scale, bias))
    y = (x.astype(mean.dtype) - mean) * (rstd * scale) + bias
    return ACTIVATIONS[activation](y).astype(x.dtype)


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
    return _instance_norm(x, scale, bias, eps, activation)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _instance_norm(x, scale, bias, eps, activation):
    return instance_norm_reference(x, scale, bias, eps=eps, activation=activation)


def _instance_norm_fwd(x, scale, bias, eps, activation):
    mean, rstd = _statistics(x, eps)
    s, b = (_per_channel(v, x).astype(mean.dtype) for v in (scale, bias))
    y = ACTIVATIONS[activation]((x.astype(mean.dtype) - mean) * (rstd * s) + b).astype(x.dtype)
    return y, (x, scale, bias, mean, rstd)


def _instance_norm_bwd(eps, activation, residuals, g):
    x, scale, bias, mean, rstd = residuals
    axes = tuple(range(1, x.ndim - 1))
    s, b = (_per_channel(v, x).astype(mean.dtype) for v in (scale, bias))
    normal = (x.astype(mean.dtype) - mean) * rstd
    before, g = normal * s + b, g.astype(mean.dtype)
    if activation is not None:
        (g,) = jax.vjp(ACTIVATIONS[activation], before)[1](g)
    # Per sample and channel: sum of the gradient, and of the gradient times the normalised input.
    g_sum = jnp.sum(g, axes, keepdims=True)
    g_dot = jnp.sum(g * normal, axes, keepdims=True)
    count = x.size // (x.shape[0] * x.shape[-1])
    dx = (s * rstd) * (g - (g_sum + normal * g_dot) / count)
    dscale = jnp.sum(g_dot, tuple(range(x.ndim - 1))).astype(scale.dtype)
    dbias = jnp.sum(g_sum, tuple(range(x.ndim - 1))).astype(bias.dtype)
    return dx.astype(x.dtype), dscale, dbias


_instance_norm.defvjp(_instance_norm_fwd, _instance_norm_bwd)
