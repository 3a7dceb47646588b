"""Figure 3 of the paper, and volumes as scatter and Bland-Altman plots."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from crossdim_jax.challenges.base import Challenge, Evaluated
from crossdim_jax.challenges.camus.layouts import STILLS, VIEWS
from crossdim_jax.challenges.camus.volumes import QUANTITIES, UNITS, Measured
from crossdim_jax.imaging.case import Case
from crossdim_jax.metrics import biplane

METHOD = "camus_official"  # what the challenge's own table is made with
_WIDTH, _EDGE, _TOP, _BOTTOM, _GAP = 7.2, 0.32, 0.42, 0.30, 0.03  # inches
_POINTS = {"ls": "", "marker": "o", "ms": 3.5, "mfc": "#3b6fb5", "mec": "white", "mew": 0.4}


def phases(challenge: Challenge, evaluated: Sequence[Evaluated]) -> tuple[str, Figure, str] | None:
    """Figure 3: the median patient at ED and ES in both views; image, truth, prediction.

    None if no patient has all four stills.
    """
    patients: dict[str, dict[str, Evaluated]] = {}
    for case in evaluated:
        if not case.note:
            patients.setdefault(case.files.patient, {})[case.files.kind] = case
    kinds = [f"{view}_{phase}" for phase in STILLS for view in VIEWS]
    complete = {p: found for p, found in patients.items() if all(kind in found for kind in kinds)}
    if not complete:
        return None

    def dice(patient: str) -> float:
        rows = [complete[patient][kind].row for kind in kinds]
        return float(np.mean([row[f"dice_{r}"] for row in rows for r in challenge.regions]))

    ranked = sorted(complete, key=lambda patient: (dice(patient), patient))
    patient = ranked[len(ranked) // 2]
    figure = _panel(challenge, complete[patient])
    what = f"{patient}, the median of {len(ranked)} patients by mean Dice"
    return (
        "phases",
        figure,
        f"End of diastole (ED) and of systole (ES) in the 2- and 4-chamber view of {what} "
        f"({100 * dice(patient):.1f} %). "
        "Epicardium blue, endocardium red, left atrium green.",
    )


def _panel(challenge: Challenge, cases: Mapping[str, Evaluated]) -> Figure:
    loaded = {}
    for phase in STILLS:
        for view in VIEWS:
            case = cases[f"{view}_{phase}"]
            predicted, _ = challenge.read_prediction(case.prediction)
            loaded[phase, view] = (challenge.load(case.files), predicted)
    side = (_WIDTH - _EDGE - _GAP * 6) / 6
    ratio = max(_ratio(case) for case, _ in loaded.values())
    height = _TOP + _BOTTOM + len(STILLS) * (side * ratio + _GAP)
    figure = Figure(figsize=(_WIDTH, height), facecolor="white")
    FigureCanvasAgg(figure)
    top = height - _TOP
    for row, phase in enumerate(STILLS):
        bottom = top - (row + 1) * side * ratio - row * _GAP
        where = ((_EDGE / 2) / _WIDTH, (bottom + side * ratio / 2) / height)
        figure.text(*where, phase, ha="center", va="center", weight="bold", size=9, rotation=90)
        for column, (view, what) in enumerate(
            (view, what) for view in VIEWS for what in ("Image", "Truth", "Prediction")
        ):
            left = _EDGE + column * (side + _GAP) + (_GAP if column > 2 else 0)
            box = (left / _WIDTH, bottom / height, side / _WIDTH, side * ratio / height)
            axes = figure.add_axes(box)
            case, predicted = loaded[phase, view]
            label = {"Image": None, "Truth": case.label, "Prediction": predicted}[what]
            _draw(axes, challenge, case, label)
            if row == 0:
                axes.set_title(what, size=8, pad=3)
    for number, view in enumerate(VIEWS):
        middle = _EDGE + (number * 3 + 1.5) * (side + _GAP)
        y = (height - 0.05) / height
        text = f"{view[0]}-chamber view"
        figure.text(middle / _WIDTH, y, text, ha="center", va="top", size=9, weight="bold")
    layers = challenge.layers(loaded[STILLS[0], VIEWS[0]][0].label)
    handles = [Line2D([], [], color=colour, lw=1.6, label=n) for n, (_, colour) in layers.items()]
    figure.legend(handles=handles, loc="lower center", ncols=len(handles), fontsize=8)
    return figure


def _ratio(case: Case) -> float:
    """Height over width of an image, in mm."""
    rows, columns = case.image.shape[1:3]
    return rows * case.spacing_mm[1] / (columns * case.spacing_mm[2])


def _draw(axes: Axes, challenge: Challenge, case: Case, label: np.ndarray | None) -> None:
    image = case.image[0, ..., 0]
    height, width = (n * mm for n, mm in zip(image.shape, case.spacing_mm[1:], strict=True))
    low, high = np.percentile(image[image > 0], (1, 99)) if (image > 0).any() else (0, 1)
    place = {"extent": (0, width, height, 0), "interpolation": "bilinear"}
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), **place)
    axes.set_axis_off()
    if label is None:
        return
    row, column = (
        (np.arange(n) + 0.5) * mm for n, mm in zip(image.shape, case.spacing_mm[1:], strict=True)
    )
    for mask, colour in challenge.layers(label[0]).values():
        if mask.any() and not mask.all():
            axes.contour(column, row, mask.astype(float), [0.5], colors=[colour], linewidths=1.0)


def volumes(
    truth: Mapping[str, Measured], prediction: Mapping[str, Measured]
) -> tuple[str, Figure, str] | None:
    """EF, EDV and ESV: prediction against truth above, Bland-Altman below.

    None if no patient has both.
    """
    pairs = {}
    for quantity, field in QUANTITIES.items():
        both = [
            (getattr(truth[p].volumes[METHOD], field), getattr(found.volumes[METHOD], field))
            for p, found in prediction.items()
        ]
        pairs[quantity] = np.array([p for p in both if not any(map(math.isnan, p))]).reshape(-1, 2)
    if not all(len(values) for values in pairs.values()):
        return None
    figure = Figure(figsize=(_WIDTH, 4.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(pairs))
    for (quantity, values), (upper, lower) in zip(pairs.items(), grid.T, strict=True):
        _scatter(upper, quantity, values)
        _bland_altman(lower, quantity, values)
    n, lost = len(pairs["EF"]), len(truth) - len(pairs["EF"])
    missing = f" {lost} of {len(truth)} patients are not known and not shown." if lost else ""
    return (
        "volumes",
        figure,
        f"Volumes by Simpson's biplane method ({METHOD}) of {n} patients. Above: from predictions "
        "against from the truth; the line is equality. Below: difference, prediction minus truth, "
        f"against mean; bias and limits of agreement (bias -+ 1.96 sd).{missing}",
    )


def _scatter(axes: Axes, quantity: str, values: np.ndarray) -> None:
    unit = UNITS[quantity]
    low, high = values.min(), values.max()
    room = max(0.08 * (high - low), 2.0)
    limits = (low - room, high + room)
    axes.plot(limits, limits, color="#888888", lw=0.8)
    axes.plot(*values.T, **_POINTS)
    r = biplane.agreement(*values.T)["r"]
    said = "r not defined" if math.isnan(r) else f"r = {r:.3f}"
    axes.set(title=f"{quantity}, {said}, n = {len(values)}", xlim=limits, ylim=limits)
    axes.set(xlabel=f"Truth ({unit})", ylabel=f"Prediction ({unit})", box_aspect=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _bland_altman(axes: Axes, quantity: str, values: np.ndarray) -> None:
    unit, found = UNITS[quantity], biplane.agreement(*values.T)
    axes.axhline(0, color="#cccccc", lw=0.8)
    axes.plot(values.mean(1), values[:, 1] - values[:, 0], **_POINTS)
    lines = {"bias": (found["bias"], "-"), "": (found["low"], "--"), " ": (found["high"], "--")}
    shown = [(value, style) for value, style in lines.values() if not math.isnan(value)]
    for value, style in shown:
        axes.axhline(value, color="#c0392b", lw=0.9, ls=style)
        axes.annotate(
            f"{value:+.1f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(2, 0),
            textcoords="offset points",
            va="center",
            size=7,
            color="#c0392b",
        )
    extent = max([abs(v) for v, _ in shown] + [float(np.abs(values[:, 1] - values[:, 0]).max()), 1])
    axes.set(ylim=(-1.25 * extent, 1.25 * extent))
    axes.set(xlabel=f"Mean ({unit})", ylabel=f"Difference ({unit})", box_aspect=1)
