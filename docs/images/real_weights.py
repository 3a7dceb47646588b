"""The figure and the tables of "Of real weights" in docs/weights.md, from certificates.

    python docs/images/real_weights.py FOLDER [FILE.png]

The folder holds certificates, NAME_2d.safetensors.certificate.json and NAME_MODE... of the 3D form:
of EfficientNet-Lite0 to 2 as lite0, lite1, lite2, and of Lite0 with random weights as random
(`python -m weight_port --random`).
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
NETWORKS = {
    "lite0": "Lite0, trained",
    "lite1": "Lite1, trained",
    "lite2": "Lite2, trained",
    "random": "Lite0, random",
}


def certificate(folder: Path, weights: str, mode: str) -> dict:
    """Measurements of a port; mode: of the 3D form, "2d" without one."""
    path = folder / f"{weights}_{mode}.safetensors.certificate.json"
    return json.loads(path.read_text(encoding="utf-8"))


def stages(folder: Path, weights: str, mode: str) -> list[dict]:
    """Measurements of a 3D form, feature by feature."""
    return certificate(folder, weights, mode)["volume"]["stages"]


def ratios(folder: Path, weights: str, mode: str) -> list[float]:
    """Variance of each feature on independent noise, over that in 2D."""
    rows = [stage["activations"] for stage in stages(folder, weights, mode)]
    return [row["uncorrelated"]["variance"] / row["2d"]["variance"] for row in rows]


def number(value: float) -> str:
    """Two digits: 0.33, 2.4, 12, 1.5e-6."""
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.2g}" if value >= 1e-2 else f"{value:.1e}".replace("e-0", "e-")


def listed(values: list[float]) -> str:
    """The five numbers; what is but rounding, as the largest of them."""
    if max(values) < 1e-4:
        return f"<= {number(max(values))}"
    return ", ".join(map(number, values))


def tables(folder: Path) -> str:
    """Tables in Markdown: the 2D networks, then each departure and the variance by mode."""
    lines = ["| network | features | logits | variance of each feature |", "|---|---|---|---|"]
    for name, title in NETWORKS.items():
        found = certificate(folder, name, "2d")
        variances = [row["2d"]["variance"] for row in found["activations"]]
        features, logits = max(found["timm"]["features"]), found["timm"]["logits"]
        lines.append(f"| {title} | {features:.1e} | {logits:.1e} | {listed(variances)} |")
    columns = {
        "edge": lambda *key: [stage["edge"] for stage in stages(folder, *key)],
        "zero": lambda *key: [stage["zero"] for stage in stages(folder, *key)],
        "variance": lambda *key: ratios(folder, *key),
    }
    for heading, values in columns.items():
        lines += ["", f"| {heading} | {' | '.join(NETWORKS.values())} |", "|---" * 5 + "|"]
        for mode in MODES:
            cells = " | ".join(listed(values(name, mode)) for name in NETWORKS)
            lines.append(f"| `{mode}` | {cells} |")
    return "\n".join(lines)


def main(folder: Path, out: Path) -> None:
    """Writes the figure and prints the tables."""
    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(12.4, 3.5), sharey=True)
    for place, (weights, title) in zip(axes, NETWORKS.items(), strict=True):
        for mode, colour in zip(MODES, COLOURS, strict=True):
            ratio = ratios(folder, weights, mode)
            place.plot(STAGES, ratio, color=colour, marker="o", ms=4, lw=1.4, label=mode)
        place.axhline(1, color="#999999", lw=0.8)
        place.set(yscale="log", xlabel="feature")
        place.set_title(f"EfficientNet-{title}", fontsize=10, loc="left")
        place.spines[["top", "right"]].set_visible(False)
        place.grid(axis="y", color="#dddddd", lw=0.6)
    axes[0].set_ylabel("variance in 3D / in 2D")
    axes[0].legend(frameon=False, fontsize=9, ncols=2, loc="lower left")
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    print(tables(folder))


if __name__ == "__main__":
    default = Path(__file__).with_name("real_weights.png")
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else default)
