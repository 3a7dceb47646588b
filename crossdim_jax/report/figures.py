"""Figures as in the paper: curves, and panels of cases with truth and prediction overlaid.

Images are (z, y, x) in LPS. Slices are shown in the radiological convention: the patient's right
is on the image's left; sagittal and coronal views have superior up; pixels keep the proportions
of `spacing_mm`. Messaoudi et al. 2023, Figures 7 and 12.
"""

import contextlib
import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from crossdim_jax.storage.files import ROOM, replacing, writing
from crossdim_jax.text import shown

ALPHA = 0.45
DPI = 220
# view -> (axis of the slice, letters at the left, right, top and bottom edge)
VIEWS = {"Axial": (0, "RLAP"), "Sagittal": (2, "APSI"), "Coronal": (1, "RLSI")}
# The two modalities that the paper shows, by the names they have in BraTS's layouts.
T2 = ("t2", "t2w")
T1CE = ("t1ce", "t1c", "t1gd")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3 fonts
}
# Inches: the width of the text beside a row, of an image, between images; of head and foot.
_TEXT, _IMAGE, _GAP, _HEAD, _FOOT = 1.35, 1.5, 0.035, 0.24, 0.3


# What is drawn of a label, see `Challenge.layers`.
Layers = Mapping[str, tuple[np.ndarray, str]]


@dataclasses.dataclass
class Subject:
    """Case as drawn.

    title: why it was chosen. caption: its id and scores, lines. image: (z, y, x, c), c names in
    `modalities`. truth, prediction: their layers; no prediction if it cannot be laid over the
    image, and `why` says why. outline: contours instead of filled areas. oriented: whether the axes
    are a patient's.
    """

    title: str
    caption: str
    image: np.ndarray
    modalities: Sequence[str]
    truth: Layers
    prediction: Layers | None
    spacing_mm: Sequence[float]
    why: str = ""
    outline: bool = False
    oriented: bool = True


def window(channel: np.ndarray) -> tuple[float, float]:
    """Window: intensities shown black and white, 1st and 99th percentile of non-zero voxels."""
    inside = channel[channel != 0]
    if not inside.size:
        return 0.0, 1.0
    low, high = np.percentile(inside, (1, 99))
    return float(low), float(high if high > low else low + 1)


def pick_modalities(names: Sequence[str]) -> tuple[int, ...]:
    """Indices of T2 and contrast-enhanced T1; of the first two channels where either is absent."""
    lower = [name.lower() for name in names]
    t2 = [i for i, name in enumerate(lower) if name in T2]
    t1ce = [i for i, name in enumerate(lower) if name in T1CE]
    return (t2[0], t1ce[0]) if t2 and t1ce else tuple(range(len(names)))[:2]


def largest_slice(mask: np.ndarray, axis: int) -> int | None:
    """Index along `axis` of the slice with the most voxels; None if there is none."""
    area = mask.sum(axis=tuple(i for i in range(3) if i != axis))
    return int(area.argmax()) if area.any() else None


def plane(volume: np.ndarray, view: str, index: int) -> np.ndarray:
    """Slice of (z, y, x, ...) as it is displayed, first row on top."""
    axis, _ = VIEWS[view]
    slab = np.take(volume, index, axis=axis)
    return slab if axis == 0 else slab[::-1]  # superior up


def panel(subjects: Sequence[Subject]) -> Figure:
    """Figures 8 to 10 and 12: one row per case; image, truth and prediction; axial.

    The slice is the one where the truth is largest. Of several modalities T2 and T1ce are shown,
    and the labels on T1ce.
    """
    return _grid([(s.title, s.caption, "Axial", s) for s in subjects])


def views(subject: Subject) -> Figure:
    """Figure 7: one case in axial, sagittal and coronal slices, columns as in `panel`."""
    captions = [f"{subject.title}\n{subject.caption}", "", ""]
    return _grid([(v, c, v, subject) for v, c in zip(VIEWS, captions, strict=True)])


@dataclasses.dataclass
class _Look:
    """View of one case in one row of a figure.

    box: the part of the slice that holds the brain. pixel_mm: (row, column). channels: indices of
    the modalities shown, and windows: what is black and white in them.
    """

    subject: Subject
    view: str
    index: int
    box: tuple[slice, slice]
    pixel_mm: tuple[float, float]
    channels: tuple[int, ...]
    windows: list[tuple[float, float]]

    @classmethod
    def of(cls, subject: Subject, view: str) -> "_Look":
        axis, _ = VIEWS[view]
        index = subject.image.shape[axis] // 2
        for layers in (subject.prediction, subject.truth):  # the truth decides, if it has any
            if layers:
                union = np.logical_or.reduce([mask for mask, _ in layers.values()])
                found = largest_slice(union, axis)
                index = index if found is None else found
        channels = pick_modalities(subject.modalities)
        pixel_mm = tuple(float(subject.spacing_mm[i]) for i in range(3) if i != axis)
        windows = [window(subject.image[..., i]) for i in channels]
        box = _brain_box(subject.image, axis)
        return cls(subject, view, index, box, pixel_mm, channels, windows)

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the part shown, in mm."""
        return tuple((s.stop - s.start) * p for s, p in zip(self.box, self.pixel_mm, strict=True))

    def cut(self, volume: np.ndarray) -> np.ndarray:
        return plane(volume, self.view, self.index)[self.box]


def _brain_box(image: np.ndarray, axis: int) -> tuple[slice, slice]:
    """Rectangle of non-zero voxels in the view along `axis`, with room for the letters."""
    inside = (image != 0).any(axis=-1).any(axis=axis)
    if axis != 0:
        inside = inside[::-1]  # as `plane` turns the rows
    slices = []
    for i, size in enumerate(inside.shape):
        occupied = np.flatnonzero(inside.any(axis=1 - i))
        low, high = (int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else (0, size)
        margin = max(1, (high - low) // 14)
        slices.append(slice(max(low - margin, 0), min(high + margin, size)))
    return tuple(slices)


def _grid(rows: Sequence[tuple[str, str, str, Subject]]) -> Figure:
    """Figure of a grid of images. rows: (bold text, text, view, case)."""
    looks = [_Look.of(subject, view) for *_, view, subject in rows]
    names = [_nice(rows[0][3].modalities[i]) for i in looks[0].channels]
    titles = [*names, f"Truth on {names[-1]}", f"Prediction on {names[-1]}"]
    layers = [*range(len(names)), "truth", "prediction"]
    ratios = [look.size_mm[0] / look.size_mm[1] for look in looks]
    heights = [_IMAGE * min(max(ratio, 0.6), 1.4) for ratio in ratios]
    width = _TEXT + len(titles) * (_IMAGE + _GAP)
    height = _HEAD + sum(heights) + _GAP * len(rows) + _FOOT
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(width, height), facecolor="white")
        FigureCanvasAgg(figure)
        bottom = height - _HEAD
        legend: dict[str, str] = {}
        for (bold, text, *_), look, row_height in zip(rows, looks, heights, strict=True):
            middle = bottom - row_height / 2 + 0.065 * (text.count("\n") + 1) * bool(text)
            as_is = {"parse_math": False}  # an id may hold dollars
            bold, text = (shown(words, keep="\n") for words in (bold, text))
            figure.text(0.01, middle / height, bold, va="bottom", size=8.5, weight="bold", **as_is)
            below = (middle - 0.04) / height
            figure.text(0.01, below, text, va="top", size=7, linespacing=1.4, **as_is)
            bottom -= row_height
            for i, (title, layer) in enumerate(zip(titles, layers, strict=True)):
                left = _TEXT + i * (_IMAGE + _GAP)
                size = (_IMAGE / width, row_height / height)
                axes = figure.add_axes((left / width, bottom / height, *size))
                if look is looks[0]:
                    axes.set_title(title, size=8.5, pad=4, **as_is)
                legend |= _draw(axes, look, layer)
                if i == 0 and look.subject.oriented:
                    _letters(axes, VIEWS[look.view][1])
            bottom -= _GAP
        patches = [Patch(facecolor=c, edgecolor="#444", lw=0.4, label=n) for n, c in legend.items()]
        figure.legend(handles=patches, loc="lower center", ncols=max(len(patches), 1), fontsize=8)
    return figure


def _draw(axes: Axes, look: _Look, layer: int | str) -> dict[str, str]:
    """Draws one image. layer: a channel of the look, or the label laid over the last of them.

    Returns {name: colour} for the legend.
    """
    channel = layer if isinstance(layer, int) else len(look.channels) - 1
    low, high = look.windows[channel]
    image = look.cut(look.subject.image)
    # Outside the brain is black also where intensities were shifted, and 0 lies among them.
    grey = np.where((image != 0).any(-1), image[..., look.channels[channel]], low)
    height_mm, width_mm = look.size_mm
    frame = {"extent": (0, width_mm, height_mm, 0), "aspect": "equal"}
    axes.set_facecolor("black")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="bilinear", **frame)
    if isinstance(layer, int):
        return {}
    layers = getattr(look.subject, layer)
    if layers is None:
        text = textwrap.fill(shown(look.subject.why) or "no prediction", 24)
        box = {"facecolor": "black", "alpha": 0.7, "lw": 0}
        centre = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, text, color="white", size=6.5, bbox=box, parse_math=False, **centre)
        return {}
    found = {name: (look.cut(mask), colour) for name, (mask, colour) in layers.items()}
    y, x = ((np.arange(n) + 0.5) * p for n, p in zip(grey.shape, look.pixel_mm, strict=True))
    for mask, colour in found.values():
        if not look.subject.outline:
            rgba = np.zeros((*mask.shape, 4))
            rgba[mask] = to_rgba(colour, ALPHA)
            axes.imshow(rgba, interpolation="nearest", **frame)
        if min(mask.shape) > 1 and mask.any() and not mask.all():
            width = 1.0 if look.subject.outline else 0.6
            axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[colour], linewidths=width)
    return {name: colour for name, (_, colour) in found.items()}


def _letters(axes: Axes, letters: str) -> None:
    """Letters of the patient's sides at the left, right, top and bottom edge."""
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.985, "center", "top"),
        (0.5, 0.015, "center", "bottom"),
    )
    outline = [withStroke(linewidth=1.5, foreground="black")]
    for letter, (x, y, ha, va) in zip(letters, places, strict=True):
        text = axes.text(x, y, letter, transform=axes.transAxes, color="white", ha=ha, va=va)
        text.set(size=6.5, path_effects=outline)


def _nice(modality: str) -> str:
    known = {"t2": "T2", "t2w": "T2", "t1ce": "T1ce", "t1c": "T1ce", "t1gd": "T1Gd"}
    known |= {"flair": "FLAIR", "t2f": "FLAIR", "t1": "T1", "t1n": "T1", "t1w": "T1"}
    return known.get(modality.lower(), modality)


def curves(
    train: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
    regions: Sequence[str],
) -> Figure:
    """Figure of loss and learning rate above; Dice per region, training and validation, below.

    train, validation: rows of metrics.jsonl. Told apart by line and marker, not by colour alone.
    """
    named = [r for r in regions if any(f"dice_{r}" in row for row in (*train, *validation))]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4 if named else 2.2), layout="constrained")
        FigureCanvasAgg(figure)
        # Two sub-figures: columns of different widths would push each other apart.
        parts = figure.subfigures(2 if named else 1, 1, squeeze=False)[:, 0]
        loss, rate = parts[0].subplots(1, 2)
        _line(loss, train, "loss", "train")
        loss.set(title="Training loss", ylabel="Loss")
        x, y = _series(train, "learning_rate")
        rate.plot(x, y, color="black", lw=1.2)
        rate.set(title="Learning rate", ylabel="Learning rate")
        if (y > 0).any():
            rate.set_yscale("log")
        lower = parts[1].subplots(1, len(named), sharey=True, squeeze=False)[0] if named else ()
        for axes, region in zip(lower, named, strict=True):
            _line(axes, train, f"dice_{region}", "train")
            x, y = _series(validation, f"dice_{region}")
            marks = {"marker": "o", "ms": 3.5, "mfc": "white", "markevery": max(1, len(x) // 15)}
            axes.plot(x, y, "-", color="black", lw=1, label="validation", **marks)
            axes.set(title=f"Dice {region}", ylim=(0, 1.02))
        if named:
            lower[0].set_ylabel("Dice")
            lower[0].legend(loc="lower right")
        for axes in (loss, rate, *lower):
            axes.set_xlabel("Epoch")
    return figure


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]
    x, y = np.asarray(pairs, float).reshape(-1, 2).T
    return x, y


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, label: str) -> None:
    """Draws the values, and where they are many their moving average over 2 % of them."""
    x, y = _series(rows, key)
    width = len(y) // 50
    if width < 2:
        axes.plot(x, y, color="#707070", lw=1.2, label=label)
        return
    axes.plot(x, y, color="#c8c8c8", lw=0.5)
    kernel = np.ones(width) / width
    axes.plot(
        np.convolve(x, kernel, "valid"),
        np.convolve(y, kernel, "valid"),
        color="#707070",
        lw=1.4,
        label=label,
    )


def styled() -> contextlib.AbstractContextManager[None]:
    """Context manager that gives the style of this module to figures made within."""
    return matplotlib.rc_context(STYLE)


def save(figure: Figure, path: Path) -> Path:
    """Writes `path` (.png) and the same as .pdf beside it, each whole or not at all.

    Returns the PNG's path. Raises DataError, naming the file, if it cannot be written.
    """
    with writing(path, "the figure", remedy=f"{ROOM}, then --mode=report"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with matplotlib.rc_context(STYLE):
            for target in (path, path.with_suffix(".pdf")):
                with replacing(target) as temporary:
                    figure.savefig(temporary, dpi=DPI)
    return path
