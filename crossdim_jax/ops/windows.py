"""What the window of a convolution sees: padding, and slices for pairs of outputs."""

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


def mixed_slices(x: jax.Array, low: int, pairs: int) -> tuple[jax.Array, ...]:
    """What Winograd's F(2, 3) along depth makes of the slices that pairs of outputs see.

    Args:
      x: `(b, d, h, w, c)`.
      low: padding before the first slice; as many follow the last as the pairs need.
      pairs: how many pairs of output slices there are.

    Returns:
      a - c, b + c, c - b, b - d of each pair's four slices a, b, c, d: `(b, pairs, h, w, c)`.
    """
    x = pad_or_cut(x, 1, low, 2 * pairs + 2 - x.shape[1] - low)
    x = x.reshape(x.shape[0], pairs + 1, 2, *x.shape[2:])
    a, b, c, d = x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1]
    return a - c, b + c, c - b, b - d
