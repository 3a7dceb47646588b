"""Windows over whole images, Gaussian-weighted, overlapping and flipped; of NumPy alone."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from crossdim_jax.errors import ConfigError


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """First index of every window along one axis: evenly spaced, covering all of `size` voxels.

    Neighbours overlap by at least the fraction `overlap` of the window; `size >= window`.
    """
    step = max(1, math.floor(window * (1.0 - overlap)))
    count = math.ceil((size - window) / step) + 1
    if count == 1:
        return [0]
    return [round(i * (size - window) / (count - 1)) for i in range(count)]


def gaussian_window(patch: Sequence[int], *, sigma: float = 0.125) -> np.ndarray:
    """Weights `(*patch,)` float32: 1 at the centre, standard deviation `sigma` times the patch.

    Never below 1e-6, so that a voxel seen only by a window's corner keeps its value.
    """
    axes = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (sigma * n)) ** 2) for n in patch]
    weights = functools.reduce(np.multiply.outer, axes)
    return np.maximum(weights / weights.max(), 1e-6).astype(np.float32)


def flip_axes(flips: bool | Sequence[int], ndim: int) -> list[tuple[int, ...]]:
    """Combinations of flipped spatial axes, the unflipped one first.

    Args:
      flips: False for none, True for all spatial axes, or the axes that may be flipped.
      ndim: number of spatial axes.
    """
    axes = tuple(range(ndim)) if flips is True else tuple(flips or ())
    return [c for n in range(len(axes) + 1) for c in itertools.combinations(axes, n)]


@dataclasses.dataclass(frozen=True)
class Windows:
    """Way of a whole image through a function of patches, and of its probabilities back.

    Every window batch has the same shape, the last one filled up with zeros. Sums are kept in
    float32, so memory of a device does not grow with the image.

    Attributes:
      patch: window size in voxels.
      overlap: fraction of a window shared with its neighbour, in [0, 1).
      flips: test-time flips, see `flip_axes`.
      window_batch: windows per call.

    Raises:
      ConfigError: `overlap`, `window_batch` or a flip axis is out of range.
    """

    patch: tuple[int, ...]
    overlap: float = 0.5
    flips: bool | Sequence[int] = False
    window_batch: int = 1

    def __post_init__(self):
        if not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"inference.overlap={self.overlap} must be at least 0 and below 1")
        if self.window_batch < 1:
            raise ConfigError(f"inference.window_batch={self.window_batch} must be at least 1")
        nd = len(self.patch)
        if not isinstance(self.flips, bool) and any(a not in range(nd) for a in self.flips):
            raise ConfigError(f"inference.flips={self.flips!r} must name spatial axes below {nd}")

    def __call__(
        self, probabilities: Callable[[np.ndarray], np.ndarray], image: np.ndarray
    ) -> np.ndarray:
        """Probabilities `(*spatial, k)` float32 of an image `(*spatial, c)`.

        An image smaller than the patch is padded with zeros, and cropped back.

        Args:
          probabilities: `(window_batch, *patch, c) -> (window_batch, *patch, k)`.
          image: prepared for the network.
        """
        image, inside = self.padded(image)
        weights = gaussian_window(self.patch)[..., None]
        total, norm = None, np.zeros((*image.shape[:-1], 1), np.float32)
        for places, windows in self._batches(image):
            result = self._flipped(probabilities, windows)
            if total is None:
                total = np.zeros((*image.shape[:-1], result.shape[-1]), np.float32)
            for place, part in zip(places, result, strict=False):
                total[place] += weights * part
                norm[place] += weights
        total /= norm
        return total[inside]

    def padded(self, image: np.ndarray) -> tuple[np.ndarray, tuple[slice, ...]]:
        """An image that windows fit in, float32, zeros around it; and where in it the image is."""
        spatial = image.shape[:-1]
        low = [max(p - n, 0) // 2 for n, p in zip(spatial, self.patch, strict=True)]
        high = [max(p - n, 0) - lo for n, p, lo in zip(spatial, self.patch, low, strict=True)]
        image = np.pad(image, [*zip(low, high, strict=True), (0, 0)]).astype(np.float32)
        return image, tuple(slice(lo, lo + n) for lo, n in zip(low, spatial, strict=True))

    def starts(self, spatial: Sequence[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
        """Yields the first voxels of the windows of a padded image, `window_batch` at a time."""
        axes = [window_starts(n, p, self.overlap) for n, p in zip(spatial, self.patch, strict=True)]
        return itertools.batched(itertools.product(*axes), self.window_batch)

    def _batches(self, image: np.ndarray) -> Iterator[tuple[list[tuple[slice, ...]], np.ndarray]]:
        """Yields `(places, windows (window_batch, *patch, c))`."""
        for chunk in self.starts(image.shape[:-1]):
            places = [
                tuple(slice(s, s + p) for s, p in zip(start, self.patch, strict=True))
                for start in chunk
            ]
            windows = np.zeros((self.window_batch, *self.patch, image.shape[-1]), np.float32)
            for i, place in enumerate(places):
                windows[i] = image[place]
            yield places, windows

    def _flipped(self, probabilities, windows: np.ndarray) -> np.ndarray:
        combinations = flip_axes(self.flips, len(self.patch))
        total = None
        for axes in combinations:
            batch_axes = tuple(a + 1 for a in axes)
            flipped = np.ascontiguousarray(np.flip(windows, batch_axes))
            result = np.flip(probabilities(flipped), batch_axes)
            total = result if total is None else total + result
        return total / len(combinations)
