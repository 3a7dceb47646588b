"""Figures 9 and 10 of the paper: each organ's best, median and worst case."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from crossdim_jax.challenges.base import Challenge, Evaluated
from crossdim_jax.errors import DataError

logger = logging.getLogger(__name__)

RANKS = {"Best": 1.0, "Median": 0.5, "Worst": 0.0}
CT_WINDOW_HU = (-160.0, 240.0)  # the usual one for the abdomen
_IMAGE, _ALPHA = 1.55, 0.42  # inches, opacity
GROUPS = {"ct": ("CT",), "mr": ("T1DUAL", "T2SPIR")}

Layers = Mapping[str, tuple[np.ndarray, str]]


def figures(challenge: Challenge, evaluated: Sequence[Evaluated]) -> list[tuple[str, Figure, str]]:
    """Figures for CT (Figure 9) and MR (Figure 10), as far as there are cases."""
    found = []
    for name, kinds in GROUPS.items():
        cases = [case for case in evaluated if case.files.kind in kinds]
        rows = [(organ, picked) for organ in challenge.regions if (picked := pick(cases, organ))]
        if rows:
            caption = (
                f"{name.upper()}: best, median and worst case of each organ by its Dice, truth "
                "beside prediction. Axial slice where the organ's truth is largest; the patient's "
                "right is on the left. "
                + ("Window -160 to 240 HU." if name == "ct" else "1st to 99th percentile.")
            )
            found.append((f"organs_{name}", draw(challenge, rows), caption))
    return found


def pick(cases: Sequence[Evaluated], organ: str) -> dict[str, Evaluated]:
    """Case of each of `RANKS` by the organ's Dice, of the cases on their image's grid."""
    scored = [c for c in cases if not c.note and not math.isnan(c.row[f"dice_{organ}"])]
    ranked = sorted(scored, key=lambda case: (case.row[f"dice_{organ}"], case.files.id))
    if not ranked:
        return {}
    return {name: ranked[round(q * (len(ranked) - 1))] for name, q in RANKS.items()}


def draw(challenge: Challenge, rows: Sequence[tuple[str, Mapping[str, Evaluated]]]) -> Figure:
    """Figure of organs downwards, ranks across, truth and prediction of each side by side."""
    columns, left, head, foot = 2 * len(RANKS), 0.4, 0.3, 0.5
    size = (left + columns * _IMAGE, head + len(rows) * (_IMAGE + 0.2) + foot)
    figure = Figure(figsize=size, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left / size[0], foot / size[1], 0.995, 1 - head / size[1], wspace=0.03, hspace=0.16
    )
    loaded: dict[str, tuple[Any, Layers, Layers]] = {}
    found: dict[str, str] = {}
    for number, rank in enumerate(RANKS):
        for ax, what in zip(axes[0, 2 * number :], ("truth", "prediction"), strict=False):
            ax.set_title(f"{rank}, {what}", fontsize=8)
    for line, (organ, picked) in zip(axes, rows, strict=True):
        line[0].set_ylabel(organ, fontsize=8.5, fontweight="bold")
        for number, case in enumerate(picked.values()):
            pair = line[2 * number : 2 * number + 2]
            for ax in pair:
                ax.set(xticks=[], yticks=[], facecolor="black")
            try:
                if case.files.id not in loaded:
                    loaded[case.files.id] = _load(challenge, case)
                found |= _pair(pair, *loaded[case.files.id], organ)
            except Exception as error:  # the other cases can still be drawn
                logger.error("%s: not drawn", case.files.id, exc_info=error)
            text = f"{case.files.id}, Dice {100 * case.row[f'dice_{organ}']:.1f} %"
            pair[0].text(0, -0.03, text, transform=pair[0].transAxes, fontsize=6.5, va="top")
    patches = [Patch(color=found[name], label=name) for name in challenge.regions if name in found]
    figure.legend(handles=patches, loc="lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _load(challenge: Challenge, case: Evaluated) -> tuple[Any, Layers, Layers]:
    loaded = challenge.load(case.files)
    label, _ = challenge.read_prediction(case.prediction)
    if label.shape != loaded.label.shape:
        raise DataError(f"{case.prediction}: is not on the grid of its image")
    return loaded, challenge.layers(loaded.label), challenge.layers(label)


def _pair(axes: Sequence[Axes], case: Any, truth: Layers, prediction: Layers, organ: str):
    """Truth and prediction of one slice; returns {name: colour} of what is in it."""
    index = int(truth[organ][0].sum(axis=(1, 2)).argmax())
    image = case.image[index, ..., 0]
    if case.kind == "CT":
        low, high = CT_WINDOW_HU
    else:
        low, high = np.percentile(image[image != 0], (1, 99)) if image.any() else (0, 1)
    aspect = case.spacing_mm[1] / case.spacing_mm[2]
    shown = {}
    for ax, layers in zip(axes, (truth, prediction), strict=True):
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        for name, (mask, colour) in layers.items():
            plane = mask[index]
            if plane.any():
                rgba = np.zeros((*plane.shape, 4))
                rgba[plane] = to_rgba(colour, _ALPHA)
                ax.imshow(rgba, aspect=aspect, interpolation="nearest")
                shown[name] = colour
                if not plane.all():
                    ax.contour(plane.astype(float), [0.5], colors=[colour], linewidths=0.7)
    return shown
