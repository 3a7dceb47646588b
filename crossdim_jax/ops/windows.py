"""Padding of what a convolution's window sees."""

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], ...]


def pad_or_cut(x: jax.Array, axis: int, low: int, high: int) -> jax.Array:
    """Adds zeros at both ends of an axis; a negative number takes entries away."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def turned_padding(window: tuple[int, ...], padding: Padding) -> Padding:
    """The padding of a convolution's transpose, which is one with the kernel turned round."""
    return tuple(
        (k - 1 - low, k - 1 - high) for k, (low, high) in zip(window, padding, strict=True)
    )
