"""The figure of docs/weights.md: `python docs/images/weights_modes.py [FILE.png]`.

Kernels and responses come from the functions that port weights, not from a drawing.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from crossdim_jax import ops
from crossdim_jax.weights.inflate import PROFILES, inflate

TAPS, SLICES = 3, 12
# An edge with a slope: neither symmetric nor separable, so that turned copies can be told apart.
KERNEL = np.array([[0.2, 0.9, 0.4], [-0.3, 0.5, 1.0], [-1.0, -0.6, 0.1]], np.float32)
# Okabe and Ito's colours, which the colour-blind can tell apart; a marker each besides.
STYLES = {
    "repeat": ("#D55E00", "o"),
    "sqrt": ("#CC79A7", "s"),
    "mean": ("#0072B2", "^"),
    "gaussian": ("#009E73", "D"),
    "center": ("#222222", "x"),
}


def kernels() -> dict[str, np.ndarray]:
    """Name of a row -> its inflated kernel (taps, 3, 3)."""
    one = KERNEL[:, :, None, None]
    rows = {mode: inflate(one, TAPS, mode)[..., 0, 0] for mode in STYLES}
    acs = inflate(np.repeat(one, 3, axis=-1), TAPS, "acs")
    names = ("acs, axial", "acs, coronal", "acs, sagittal")
    return rows | {name: acs[..., 0, i] for i, name in enumerate(names)}


def response(mode: str, volume: np.ndarray) -> np.ndarray:
    """Per slice, with zero padding, relative to what the 2D kernel gives on a full slice."""
    taps = PROFILES[mode](TAPS).reshape(TAPS, 1, 1, 1, 1).astype(np.float32)
    x = volume.reshape(1, -1, 1, 1, 1).astype(np.float32)
    y = ops.conv(x, taps, strides=(1,) * 3, padding=((TAPS // 2,) * 2, (0, 0), (0, 0)), mode="lax")
    return np.asarray(y).ravel()


def draw_kernels(figure: Figure, place) -> None:
    """A row for each mode, a column for each tap along depth."""
    rows = kernels()
    grid = place.subgridspec(len(rows), TAPS, wspace=0.08, hspace=0.18)
    for r, (name, kernel) in enumerate(rows.items()):
        for tap in range(TAPS):
            axes = figure.add_subplot(grid[r, tap])
            axes.imshow(kernel[tap], cmap="PuOr_r", vmin=-1, vmax=1)
            axes.set(xticks=[], yticks=[])
            if tap == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
            if r == 0:
                axes.set_title(f"tap {tap}", fontsize=9)


def draw_response(axes: plt.Axes, volume: np.ndarray, title: str) -> None:
    """Response of each mode along depth."""
    for mode, (colour, marker) in STYLES.items():
        y = response(mode, volume)
        axes.plot(y, color=colour, marker=marker, ms=4.5, lw=1.3, mfc="none", label=mode)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("slice", fontsize=9)
    axes.set_ylabel("response / 2D response", fontsize=9)
    axes.set_xticks(range(0, SLICES, 2))
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)


def main(path: str | Path) -> None:
    """Writes the figure."""
    figure = plt.figure(figsize=(9.6, 6.8))
    left, right = figure.add_gridspec(
        1, 2, width_ratios=(1, 1.65), wspace=0.26, left=0.11, right=0.98, top=0.9, bottom=0.08
    )
    draw_kernels(figure, left)
    top, bottom = right.subgridspec(2, 1, hspace=0.42)
    constant = figure.add_subplot(top)
    draw_response(constant, np.ones(SLICES), "A volume that does not change along depth")
    constant.set_ylim(0, 3.2)
    constant.legend(fontsize=9, frameon=False, ncols=5, loc="lower center", columnspacing=1.2)
    single = np.arange(SLICES) == SLICES // 2
    draw_response(figure.add_subplot(bottom), single, "One bright slice, all others empty")
    figure.text(0.02, 0.955, f"A 3x3 kernel with {TAPS} taps along depth", fontsize=11)
    figure.text(0.45, 0.955, "What it responds, with zeros beyond the ends", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("weights_modes.png"))
