"""2D kernels -> 3D: the modes of cross-dimensional transfer.

A kernel is (k, k, in, out), rows by columns, and becomes (depth, k, k, in, out): depth is the first
spatial axis. Depthwise kernels are (k, k, 1, out) and need no case of their own. Pure numpy.

To add a mode: write a function `(kernel, depth) -> inflated kernel` and name it in `INFLATE`.
"""

from collections.abc import Callable

import numpy as np

from crossdim_jax.errors import WeightsError


def repeat(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Every tap is the 2D kernel; responses grow by `depth` on a depth-constant volume.

    Messaoudi et al. 2023: "concatenating the 2D weights repeatedly over the 3D depth".
    """
    return np.stack([kernel] * depth)


def mean(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Every tap is the 2D kernel over `depth`: equals 2D on a depth-constant volume.

    Carreira and Zisserman 2017 (I3D). Exact away from the depth border.
    """
    return np.stack([kernel / depth] * depth)


def center(kernel: np.ndarray, depth: int) -> np.ndarray:
    """The middle tap is the 2D kernel, the others 0: equals 2D slice by slice.

    Where depth is even there are two middle taps, and each takes half.
    """
    inflated = np.zeros((depth, *kernel.shape), kernel.dtype)
    for tap in {(depth - 1) // 2, depth // 2}:
        inflated[tap] = kernel if depth % 2 else kernel / 2
    return inflated


INFLATE: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "repeat": repeat,
    "mean": mean,
    "center": center,
}


def check_mode(mode: str) -> None:
    """Raises WeightsError, listing the known modes, if `mode` is none of them."""
    if mode not in INFLATE:
        raise WeightsError(
            f"Unknown inflation mode {mode!r}; the known ones: {', '.join(INFLATE)}."
        )


def inflate(kernel: np.ndarray, depth: int, mode: str) -> np.ndarray:
    """Extends a 2D kernel along depth.

    Args:
      kernel: (k, k, in, out).
      depth: number of taps along depth, usually k. 1x1 kernels keep one tap: every mode is the
        identity on them.
      mode: a key of `INFLATE`.

    Returns:
      (depth, k, k, in, out), of the kernel's dtype.

    Raises:
      WeightsError: an unknown mode.
      ValueError: a kernel that is not 4-D, or a depth other than 1 for a 1x1 kernel.
    """
    check_mode(mode)
    if kernel.ndim != 4 or depth < 1:
        raise ValueError(
            f"expected a (k, k, in, out) kernel and depth >= 1: {kernel.shape} {depth}"
        )
    if kernel.shape[:2] == (1, 1):
        if depth != 1:
            raise ValueError(f"a 1x1 kernel keeps one depth tap, asked for {depth}")
        return kernel[None].copy()
    return INFLATE[mode](kernel, depth).astype(kernel.dtype, copy=False)
