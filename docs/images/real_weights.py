"""A figure of docs/weights.md: real and random weights in every mode, stage by stage.

    python docs/images/real_weights.py FOLDER [FILE.png]

The folder holds certificates of EfficientNet-Lite0: `lite0_MODE.safetensors.certificate.json` of
the trained weights, `random_MODE...` of random ones (`python -m weight_port --random`).
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MODES = ("repeat", "sqrt", "mean", "gaussian", "acs", "center")
COLOURS = ("#D55E00", "#CC79A7", "#0072B2", "#009E73", "#E69F00", "#222222")
STAGES = ("/2", "/4", "/8", "/16", "/32")


def certificate(folder: Path, weights: str, mode: str) -> dict:
    """Measurements of a port's 3D network."""
    path = folder / f"{weights}_{mode}.safetensors.certificate.json"
    return json.loads(path.read_text(encoding="utf-8"))["volume"]


def main(folder: Path, out: Path) -> None:
    """Writes the figure."""
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6), sharey=True)
    for place, weights, title in zip(
        axes, ("lite0", "random"), ("trained on ImageNet", "random"), strict=True
    ):
        for mode, colour in zip(MODES, COLOURS, strict=True):
            rows = [stage["activations"] for stage in certificate(folder, weights, mode)["stages"]]
            ratio = [row["uncorrelated"]["variance"] / row["2d"]["variance"] for row in rows]
            place.plot(STAGES, ratio, color=colour, marker="o", ms=4, lw=1.4, label=mode)
        place.axhline(1, color="#999999", lw=0.8)
        place.set(yscale="log", xlabel="feature")
        place.set_title(f"EfficientNet-Lite0, {title}", fontsize=10, loc="left")
        place.spines[["top", "right"]].set_visible(False)
        place.grid(axis="y", color="#dddddd", lw=0.6)
    axes[0].set_ylabel("variance in 3D / in 2D")
    axes[1].legend(frameon=False, fontsize=9, ncols=2)
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    default = Path(__file__).with_name("real_weights.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
