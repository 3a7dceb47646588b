"""The image and the target that both sides get."""

from collections.abc import Sequence

import numpy as np

MODALITIES, REGIONS = 4, 3


def sample(size: int | Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image `(1, *size, 4)` and its nested regions `(1, *size, 3)`; one number: of a cube.

    Both are float32: noise with smooth structure, and three balls around the centre, so that no
    region is empty and no gradient vanishes for want of contrast.
    """
    rng = np.random.default_rng(seed)
    size = (size,) * 3 if isinstance(size, int) else tuple(size)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    radius = np.sqrt(z[:, None, None] ** 2 + y[:, None] ** 2 + x**2)
    target = np.stack([radius < limit for limit in (0.8, 0.6, 0.4)], -1).astype(np.float32)
    image = rng.normal(size=(*size, MODALITIES)).astype(np.float32)
    image += target.sum(-1, keepdims=True) * np.linspace(0.5, 1.5, MODALITIES, dtype=np.float32)
    return image[None], target[None]
