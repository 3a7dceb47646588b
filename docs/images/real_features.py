"""A figure of docs/weights.md: what a network that saw photographs sees in an MR volume.

    python -m weight_port tf_efficientnet_lite0.in1k --out=2d.safetensors
    python -m weight_port tf_efficientnet_lite0.in1k --ndim=3 --inflate=mean --norm=frozen \
        --in-channels=1 --stem=sum --out=3d.safetensors
    python docs/images/real_features.py VOLUME 2d.safetensors 3d.safetensors [FILE.jpg]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import ndimage

from crossdim_jax.imaging import volume
from crossdim_jax.weights.file import load_weights
from weight_port.forward import attributes, features

DEPTH, ZOOM, CHANNELS = 32, 2, 4


def slab(path: str) -> np.ndarray:
    """Slices around the middle (z, y, x), z-scored, the plane enlarged, a multiple of 32 wide."""
    image = volume.read_image(path)[0].astype(np.float32)
    middle = image.shape[0] // 2
    part = image[middle - DEPTH // 2 : middle + DEPTH // 2]
    part = ndimage.zoom((part - image.mean()) / image.std(), (1, ZOOM, ZOOM), order=1)
    rows, columns = (n - n % 32 for n in part.shape[1:])
    top, left = ((n - m) // 2 for n, m in zip(part.shape[1:], (rows, columns), strict=True))
    return part[:, top : top + rows, left : left + columns]


def of_file(path: str, image: np.ndarray) -> list[np.ndarray]:
    """Features of a weight file's encoder."""
    weights = load_weights(path)
    record = weights.metadata
    return features(record["architecture"], weights.arrays, image, **attributes(record))


def main(path: str, plane_file: str, deep_file: str, out: str | Path) -> None:
    """Writes the figure."""
    image = slab(path)
    middle = DEPTH // 2
    flat = of_file(plane_file, np.repeat(image[None, middle, ..., None], 3, axis=-1))
    deep = of_file(deep_file, image[None, ..., None])
    figure, axes = plt.subplots(6, CHANNELS + 1, figsize=(6.4, 10.2))
    for level in range(3):
        two = flat[level][0]
        three = deep[level][0, round(middle / 2 ** (level + 1))]
        chosen = np.argsort(two.var(axis=(0, 1)))[::-1][:CHANNELS]
        for row, (name, found) in enumerate((("2D", two), ("3D", three))):
            line = axes[2 * level + row]
            line[0].imshow(image[middle], cmap="gray")
            line[0].set_ylabel(f"{name}, /{2 ** (level + 1)}", fontsize=10)
            for place, channel in zip(line[1:], chosen, strict=True):
                low, high = np.percentile(two[..., channel], (1, 99))
                place.imshow(found[..., channel], cmap="magma", vmin=low, vmax=high)
                if row == 0:
                    place.set_title(f"channel {channel}", fontsize=8)
    for place in axes.ravel():
        place.set(xticks=[], yticks=[])
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 85})


if __name__ == "__main__":
    default = Path(__file__).with_name("real_features.jpg")
    main(*sys.argv[1:4], sys.argv[4] if len(sys.argv) > 4 else default)
