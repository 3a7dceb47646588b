"""2D kernels -> 3D: the modes of cross-dimensional transfer.

A kernel is (k, k, in, out), rows by columns, and becomes (depth, k, k, in, out): depth is the first
spatial axis. Depthwise kernels are (k, k, 1, out) and need no case of their own. Pure numpy.

Most modes give each depth tap a multiple of the 2D kernel; such a mode is its *profile*, the taps'
factors, and can also be kept apart as a depth filter (`factorise`). `acs` is not of that kind.

To add a mode: write its profile, `depth -> (depth,) factors`, and name it in `PROFILES`; or, where
taps are no multiples, a function `(kernel, depth) -> inflated kernel`, named in `INFLATE`.
"""

import functools
from collections.abc import Callable

import numpy as np

from crossdim_jax.errors import WeightsError, check_name


def repeat(depth: int) -> np.ndarray:
    """1 at every tap; responses grow by `depth` on a depth-constant volume.

    Messaoudi et al. 2023: "concatenating the 2D weights repeatedly over the 3D depth".
    """
    return np.ones(depth)


def mean(depth: int) -> np.ndarray:
    """1 / depth at every tap: equals 2D on a depth-constant volume.

    Carreira and Zisserman 2017 (I3D). Exact away from the depth border, and up to it where the
    depth is padded with copies of its end slices.
    """
    return np.full(depth, 1 / depth)


def sqrt(depth: int) -> np.ndarray:
    """1 / sqrt(depth) at every tap: keeps the variance where slices are uncorrelated."""
    return np.full(depth, 1 / np.sqrt(depth))


def center(depth: int) -> np.ndarray:
    """1 at the middle tap, else 0: equals 2D slice by slice, where depth is not strided.

    Where depth is even there are two middle taps, and each takes half.
    """
    factors = np.zeros(depth)
    for tap in ((depth - 1) // 2, depth // 2):
        factors[tap] += 0.5
    return factors


def gaussian(depth: int) -> np.ndarray:
    """A Gaussian over the taps, of sum 1: between `center` and `mean`.

    Its sigma is depth / 4 taps, so that the window reaches to two sigma on either side: 0.23, 0.55,
    0.23 for three taps.
    """
    from_middle = np.arange(depth) - (depth - 1) / 2
    factors = np.exp(-0.5 * np.square(from_middle / (depth / 4)))
    return factors / factors.sum()


PROFILES: dict[str, Callable[[int], np.ndarray]] = {
    "repeat": repeat,
    "mean": mean,
    "center": center,
    "sqrt": sqrt,
    "gaussian": gaussian,
}


def separable(kernel: np.ndarray, depth: int, *, mode: str) -> np.ndarray:
    """The 2D kernel times the mode's factor, at every tap."""
    return PROFILES[mode](depth).reshape(-1, 1, 1, 1, 1) * kernel


def acs(kernel: np.ndarray, depth: int) -> np.ndarray:
    """Each third of the output channels gets the 2D kernel as a plane of another orientation.

    Axial (1, k, k), coronal (k, 1, k), sagittal (k, k, 1), each in the middle of a cube; the
    kernel's rows and columns become the plane's two axes in the order (z, y, x). Where the
    channels do not divide by three, the first thirds take one more. In an even cube the plane is
    shared by the two middle slices. Yang et al. 2021 (ACS convolutions).

    Raises:
      WeightsError: depth is neither k nor 1 (the 2D kernel itself): the planes would not be square.
    """
    rows, columns = kernel.shape[:2]
    if depth == 1:
        return kernel[None]
    if not depth == rows == columns:
        raise WeightsError(
            f"Inflation mode 'acs' turns a {rows}x{columns} kernel into planes across depth, which "
            f"needs {rows} taps along depth (or 1, the 2D kernel itself), found {depth}. Choose "
            "another mode for such kernels with --inflate-at 'PATTERN=MODE', or leave depth "
            "kernels at the in-plane size."
        )
    cube = np.zeros((depth, *kernel.shape), np.float64)
    thirds = np.array_split(cube, 3, axis=-1)  # views
    for axis, third in enumerate(np.array_split(kernel, 3, axis=-1)):
        for middle, share in enumerate(center(depth)):
            np.moveaxis(thirds[axis], axis, 0)[middle] = share * third
    return cube


INFLATE: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    **{mode: functools.partial(separable, mode=mode) for mode in PROFILES},
    "acs": acs,
}


def check_mode(mode: str) -> None:
    """Raises WeightsError, listing the known modes, if `mode` is none of them."""
    check_name("inflate", mode, INFLATE, error=WeightsError)


def inflate(kernel: np.ndarray, depth: int, mode: str) -> np.ndarray:
    """Extends a 2D kernel along depth.

    Args:
      kernel: (k, k, in, out).
      depth: number of taps along depth, usually k; any number from 1. 1x1 kernels keep one tap:
        every mode is the identity on them.
      mode: a key of `INFLATE`.

    Returns:
      (depth, k, k, in, out), of the kernel's dtype.

    Raises:
      WeightsError: an unknown mode, or `acs` with a depth that it cannot do.
      ValueError: a kernel that is not 4-D, or a depth other than 1 for a 1x1 kernel.
    """
    check_mode(mode)
    _check_kernel(kernel, depth)
    if kernel.shape[:2] == (1, 1):
        return kernel[None].copy()
    return INFLATE[mode](kernel, depth).astype(kernel.dtype)


def factorise(kernel: np.ndarray, depth: int, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """A depthwise 2D kernel and the depth filter whose product is `inflate(kernel, depth, mode)`.

    Args:
      kernel: (k, k, 1, channels).
      depth: number of taps of the filter.
      mode: a key of `PROFILES`.

    Returns:
      (1, k, k, 1, channels) and (depth, 1, 1, 1, channels), of the kernel's dtype.

    Raises:
      WeightsError: an unknown mode, or one whose taps are no multiples of one kernel.
      ValueError: as `inflate`.
    """
    check_factorised(mode)
    _check_kernel(kernel, depth)
    taps = PROFILES[mode](depth).reshape(-1, 1, 1, 1, 1)
    taps = np.broadcast_to(taps, (depth, 1, 1, 1, kernel.shape[-1]))
    return kernel[None].copy(), taps.astype(kernel.dtype)


def check_factorised(mode: str) -> None:
    """Raises WeightsError if a mode is unknown or no product of a plane and a depth filter."""
    check_mode(mode)
    if mode not in PROFILES:
        raise WeightsError(
            f"Inflation mode {mode!r} is no product of a 2D kernel and a depth filter, so it "
            f"cannot be factorised; choose one of {', '.join(PROFILES)}, or dense kernels."
        )


def _check_kernel(kernel: np.ndarray, depth: int) -> None:
    if kernel.ndim != 4 or depth < 1:
        raise ValueError(
            f"expected a (k, k, in, out) kernel and depth >= 1: {kernel.shape} {depth}"
        )
    if kernel.shape[:2] == (1, 1) and depth != 1:
        raise ValueError(f"a 1x1 kernel keeps one depth tap, asked for {depth}")
