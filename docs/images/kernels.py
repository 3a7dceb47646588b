"""Draws how a 2D kernel becomes a 3D one: `python docs/images/kernels.py [FILE.png]`.

The kernels come from the function that ports weights, not from a drawing.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import Normalize
from matplotlib.patches import FancyArrowPatch, Polygon
from weights_modes import KERNEL, TAPS

from crossdim_jax.weights.inflate import inflate

COLUMNS = {
    "repeat": "the same at every tap\n(the paper's)",
    "mean": "a third of it each:\n2D where slices are alike",
    "gaussian": "most in the middle:\n2D where slices are alike",
    "center": "the middle tap alone:\n2D slice by slice",
}
_ACROSS = np.array([0.74, 0.22])  # of one pixel, on the page
_DOWN = np.array([0.0, -0.86])


def plane(axes: plt.Axes, values: np.ndarray, origin: np.ndarray, *, flat: bool) -> None:
    """Draws a (3, 3) kernel; flat as on paper, or turned like a slice of a stack."""
    across = np.array([0.86, 0.0]) if flat else _ACROSS
    colours = plt.get_cmap("PuOr_r")(Normalize(-1, 1)(values))
    for row, column in np.ndindex(values.shape):
        corner = origin + column * across + row * _DOWN
        outline = [corner, corner + across, corner + across + _DOWN, corner + _DOWN]
        axes.add_patch(Polygon(outline, fc=colours[row, column], ec="#222222", lw=0.7))


def main(path: str | Path) -> None:
    """Writes the figure."""
    figure = plt.figure(figsize=(10, 2.94))
    axes = figure.add_axes((0, 0, 1, 1), aspect="equal", xlim=(-0.6, 30.4), ylim=(-5.2, 3.9))
    axes.axis("off")
    plane(axes, KERNEL, np.array([0.3, 0.6]), flat=True)
    axes.text(1.6, 3.0, "2D kernel", ha="center", fontsize=12, weight="bold")
    axes.text(1.6, -4.1, "trained on\nphotographs", ha="center", va="center", fontsize=10)
    arrow = {"arrowstyle": "-|>", "mutation_scale": 18, "color": "#222222", "lw": 1.6}
    axes.add_patch(FancyArrowPatch((3.6, -0.6), (5.6, -0.6), **arrow))
    axes.text(4.6, -0.1, "inflate", ha="center", fontsize=10)
    for number, (mode, meaning) in enumerate(COLUMNS.items()):
        left = 6.5 + 6.1 * number
        kernel = inflate(KERNEL[:, :, None, None], TAPS, mode)[..., 0, 0]
        for tap in range(TAPS):  # the one nearest to the reader last
            shift = np.array([left + 1.42 * tap, 1.45 - 0.56 * tap])
            plane(axes, kernel[tap], shift, flat=False)
        axes.text(left + 2.5, 3.0, mode, ha="center", fontsize=12, weight="bold")
        axes.text(left + 2.5, -4.1, meaning, ha="center", va="center", fontsize=10)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_suffix(".png"))
