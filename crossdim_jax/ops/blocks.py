"""Blocks of voxels as channels, and back."""

import math
from collections.abc import Sequence

import jax


def depth_to_space(x: jax.Array, block: Sequence[int]) -> jax.Array:
    """`(b, *spatial, prod(block) * c)` -> `(b, *(block * spatial), c)`.

    A voxel's place in its block varies slower than the channel, and the first axis slowest.
    """
    nd = len(block)
    batch, spatial = x.shape[0], x.shape[1:-1]
    features = x.shape[-1] // math.prod(block)
    parts = x.reshape(batch, *spatial, *block, features)
    # (b, d, h, w, 2, 2, 2, c) -> (b, d, 2, h, 2, w, 2, c)
    order = [0, *(a for i in range(nd) for a in (1 + i, 1 + nd + i)), 2 * nd + 1]
    sizes = (n * m for n, m in zip(spatial, block, strict=True))
    return parts.transpose(order).reshape(batch, *sizes, features)


def space_to_depth(x: jax.Array, block: Sequence[int]) -> jax.Array:
    """`(b, *(block * spatial), c)` -> `(b, *spatial, prod(block) * c)`: undoes `depth_to_space`."""
    nd = len(block)
    batch, features = x.shape[0], x.shape[-1]
    spatial = [n // m for n, m in zip(x.shape[1:-1], block, strict=True)]
    halves = (size for pair in zip(spatial, block, strict=True) for size in pair)
    parts = x.reshape(batch, *halves, features)
    # (b, d, 2, h, 2, w, 2, c) -> (b, d, h, w, 2, 2, 2, c)
    order = [0, *range(1, 2 * nd, 2), *range(2, 2 * nd + 1, 2), 2 * nd + 1]
    return parts.transpose(order).reshape(batch, *spatial, math.prod(block) * features)
