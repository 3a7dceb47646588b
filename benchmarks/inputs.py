"""The image and the target that both sides get."""

import numpy as np

MODALITIES, REGIONS = 4, 3


def sample(size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image `(1, size, size, size, 4)` and its nested regions `(1, size, size, size, 3)`.

    Both are float32: noise with smooth structure, and three balls around the centre, so that no
    region is empty and no gradient vanishes for want of contrast.
    """
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    target = np.stack([radius < limit for limit in (0.8, 0.6, 0.4)], -1).astype(np.float32)
    image = rng.normal(size=(size, size, size, MODALITIES)).astype(np.float32)
    image += target.sum(-1, keepdims=True) * np.linspace(0.5, 1.5, MODALITIES, dtype=np.float32)
    return image[None], target[None]
