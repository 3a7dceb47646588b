"""Winograd's minimal filtering along depth: slices from fewer convolutions than each takes alone.

F(m, 3) makes m output slices that a window of three taps sees from m + 2 convolutions in the plane,
where there would be 3 m. It mixes the m + 2 slices that they see, the kernel's three planes, and
what comes out, each by a small matrix.

Source: Lavin and Gray 2016, Fast algorithms for convolutional neural networks, Sect. 4.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from crossdim_jax.ops.windows import pad_or_cut


class Filtering(NamedTuple):
    """The matrices of F(m, 3).

    Attributes:
      slices: `(m + 2, m + 2)`: of the slices seen, what each convolution takes.
      planes: `(m + 2, 3)`: of the kernel's planes, what each convolution takes.
      outputs: `(m, m + 2)`: of the convolutions, what each output is.
    """

    slices: np.ndarray
    planes: np.ndarray
    outputs: np.ndarray

    @property
    def size(self) -> int:
        """m, the outputs of a group."""
        return len(self.outputs)

    def groups(self, depth: int) -> int:
        """Number of groups for so many output slices; the last may be one in part."""
        return -(-depth // self.size)


F2 = Filtering(
    slices=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
    planes=np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]]) / 2,
    outputs=np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
)
F4 = Filtering(
    slices=np.array(
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ]
    ),
    planes=np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24,
    outputs=np.array(
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
    ),
)


def filtering_for(depth: int) -> Filtering:
    """Filtering with fewer convolutions for so many output slices; F(2, 3) rounds less."""
    return min((F2, F4), key=lambda f: f.groups(depth) * (f.size + 2))


def mixed_slices(x: jax.Array, low: int, depth: int, filtering: Filtering) -> list[jax.Array]:
    """Slices, mixed as each convolution takes them.

    Args:
      x: `(b, d, h, w, c)`.
      low: padding before the first slice; as many follow the last as the groups need.
      depth: of the output.
      filtering: F(m, 3).

    Returns:
      m + 2 arrays `(b, groups, h, w, c)`.
    """
    m, groups = filtering.size, filtering.groups(depth)
    x = pad_or_cut(x, 1, low, m * (groups + 1) - x.shape[1] - low)
    x = x.reshape(x.shape[0], groups + 1, m, *x.shape[2:])
    seen = [x[:, :-1, i] for i in range(m)] + [x[:, 1:, i] for i in range(2)]
    return combined(filtering.slices, seen)


def combined(matrix: np.ndarray, parts: Sequence[jax.Array]) -> list[jax.Array]:
    """The matrix times a vector of arrays, without what is multiplied by nought."""
    return [
        sum(float(factor) * part for factor, part in zip(row, parts, strict=True) if factor)
        for row in matrix
    ]
