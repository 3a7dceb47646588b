"""Figures of a study. Arms are told apart by colour, marker and line, not by colour alone."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from crossdim_jax.report.figures import styled
from crossdim_jax.study.analysis import Analysis, Comparison, cases_text
from crossdim_jax.study.collect import Results
from crossdim_jax.study.statistics import running
from crossdim_jax.text import shown

# Wong 2011, Points of view: Color blindness, Nature Methods 8; black is the reference's.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
LINES = ("-", "--", "-.", ":")
_WIDTH = 7.2  # inches, of a page's text


class Looks:
    """Colour, marker and line of each arm, the same in all figures. reference: black circles."""

    def __init__(self, arms: Sequence[str], reference: str):
        self.names = list(dict.fromkeys((reference, *arms)))

    def __getitem__(self, arm: str) -> dict[str, str]:
        i = self.names.index(arm) - 1
        if i < 0:
            return {"color": "black", "marker": "o", "ls": "-"}
        again, n = divmod(i, len(COLOURS))  # the same colours, with other markers and lines
        marker = MARKERS[(n + again) % len(MARKERS)]
        return {"color": COLOURS[n], "marker": marker, "ls": LINES[(n + 1 + again) % len(LINES)]}


def forest(analysis: Analysis, looks: Looks) -> Figure:
    """Forest plot: a line for each comparison, its mean and 95 % interval, grouped by cases.

    Hollow where there are too few seeds or cases to conclude anything.
    """
    groups: dict[int, list[Comparison]] = {}
    for comparison in analysis.comparisons:
        groups.setdefault(comparison.cases, []).append(comparison)
    rows = len(analysis.comparisons) + 1.3 * len(groups)
    with styled():
        figure, [[axes]] = _figure(0.7 + 0.21 * rows)
        y, ticks, labels = 0.0, [], []
        for cases, found in groups.items():
            y += 0.3
            ticks.append(y)
            labels.append(cases_text(cases))
            for comparison in found:
                y += 1.0
                _interval(axes, y, comparison, looks[comparison.arm])
                ticks.append(y)
                labels.append(f"{shown(comparison.arm)} \u2212 {shown(comparison.against)}")
            y += 1.0
        axes.axvline(0, color="black", lw=0.8, zorder=1)
        axes.set_yticks(ticks, labels, parse_math=False)
        for text in axes.get_yticklabels():
            if text.get_text() in {cases_text(cases) for cases in groups}:
                text.set_weight("bold")
        axes.set(ylim=(y - 0.4, -0.6), xlabel=f"Difference of {_scale(analysis)}")
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
    return figure


def _interval(axes: Axes, y: float, comparison: Comparison, look: Mapping[str, str]) -> None:
    d = comparison.difference
    face = "white" if d.few else look["color"]
    if not math.isnan(d.low):
        line = "--" if d.few else "-"
        axes.plot([d.low, d.high], [y, y], color=look["color"], lw=1.5, ls=line, zorder=2)
    seeds = list(d.seed_means.values())
    axes.plot(seeds, [y] * len(seeds), "|", color=look["color"], ms=7, mew=0.8, alpha=0.6)
    axes.plot(d.mean, y, look["marker"], color=look["color"], mfc=face, ms=5.5, zorder=3)
    if comparison.starred:
        axes.annotate("*", (d.high, y), (3, -2), textcoords="offset points", va="center")


def scores(analysis: Analysis, looks: Looks) -> Figure:
    """Score against the number of training cases: mean of the seeds, each seed, and +- one SD."""
    counts = sorted({arm.cases for arm in analysis.arms})
    place = {cases: float(i) for i, cases in enumerate(counts)}
    names = [name for name in looks.names if any(arm.name == name for arm in analysis.arms)]
    with styled():
        figure, [[axes]] = _figure(3.2)
        for i, name in enumerate(names):
            found = sorted((a for a in analysis.arms if a.name == name), key=lambda a: a.cases)
            # Points side by side can be told apart.
            aside = min(0.07, 0.3 / len(names)) * (i - (len(names) - 1) / 2)
            x = np.array([place[a.cases] + aside for a in found])
            mean, sd = (np.array([getattr(a, k) for a in found]) for k in ("mean", "sd"))
            look = looks[name]
            axes.plot(x, mean, **look, lw=1.3, ms=5, label=shown(name))
            if len(x) > 1:
                low, high = mean - np.nan_to_num(sd), mean + np.nan_to_num(sd)
                axes.fill_between(x, low, high, color=look["color"], alpha=0.1, lw=0)
            axes.errorbar(x, mean, sd, fmt="none", ecolor=look["color"], lw=0.9, capsize=2)
            for place_of_seeds, arm in zip(x, found, strict=True):
                seeds = list(arm.seeds.values())
                axes.plot([place_of_seeds] * len(seeds), seeds, ".", color=look["color"], ms=3)
        axes.set_xticks(list(place.values()), [str(cases) for cases in counts])
        axes.set(xlabel="Training cases", ylabel=_scale(analysis), xlim=(-0.5, len(counts) - 0.5))
        _legend(figure, axes)
    return figure


def curves(results: Results, looks: Looks, reach: float) -> Figure:
    """Training Dice by step: running mean, meaned over the seeds; band from lowest to highest.

    A column for each number of training cases; below, where there are any, the validation's.
    """
    counts = results.cases()
    kinds = ["train", "validation"]
    kinds = [k for k in kinds if any(len(f.curve(k)[0]) > 1 for f in results.finished)] or ["train"]
    columns = min(len(counts), 4)
    height = math.ceil(len(counts) / columns)
    with styled():
        figure, grid = _figure(0.5 + 2.3 * height * len(kinds), height * len(kinds), columns)
        for k, kind in enumerate(kinds):
            for i, cases in enumerate(counts):
                axes = grid[k * height + i // columns][i % columns]
                for name in looks.names:
                    _curve(axes, results, name, cases, kind, looks)
                axes.set_title(cases_text(cases))
                if kind == "train":
                    axes.axhline(reach, color="#555555", lw=0.7, ls=":")
                axes.set(xlabel="Step", ylim=(0, 1.02))
            for row in grid[k * height : (k + 1) * height]:
                row[0].set_ylabel("Training Dice" if kind == "train" else "Validation Dice")
        for axes in np.ravel(grid):
            if not axes.lines:
                axes.remove()
        _legend(figure, grid[0][0])
    return figure


def _curve(axes: Axes, results: Results, arm: str, cases: int, kind: str, looks: Looks) -> None:
    found = [run.curve(kind) for run in results.of(arm, cases).values()]
    found = [(steps, dice) for steps, dice in found if len(steps)]
    if not found:
        return
    common = np.array(sorted(set.intersection(*(set(steps) for steps, _ in found))))
    smooth = running if kind == "train" else np.asarray
    rows = np.array([smooth(dice)[np.isin(steps, common)] for steps, dice in found])
    look = dict(looks[arm])
    marker = look.pop("marker")
    marks = {"marker": marker, "markevery": max(1, len(common) // 6), "ms": 3.5}
    axes.plot(common, rows.mean(0), **look, **marks, lw=1.2, label=shown(arm))
    axes.fill_between(common, rows.min(0), rows.max(0), color=look["color"], alpha=0.15, lw=0)


def cases(analysis: Analysis, results: Results, looks: Looks, count: int, factor: float) -> Figure:
    """Score of each held-out case, mean over the seeds: reference along, another arm up.

    count: of training cases. factor: from a score to what is printed.
    """
    reference = looks.names[0]
    names = [name for name in looks.names[1:] if results.of(name, count)]
    columns = min(len(names), 4)
    rows = math.ceil(len(names) / columns)
    with styled():
        figure, grid = _figure(0.4 + 1.9 * rows, rows, columns, width=_WIDTH * columns / 4)
        for axes in np.ravel(grid)[len(names) :]:
            axes.remove()
        for name, axes in zip(names, np.ravel(grid), strict=False):
            x, y = _case_means(results, analysis.metric, reference, name, count)
            both = np.array([*x, *y]) * factor
            ends = [np.nanmin(both), np.nanmax(both)] if np.isfinite(both).any() else [0, 1]
            axes.plot(ends, ends, color="#888888", lw=0.8)
            look = looks[name]
            axes.plot(x * factor, y * factor, look["marker"], color=look["color"], ms=3, alpha=0.7)
            axes.set_title(textwrap.fill(shown(name), 20), parse_math=False)
            axes.set_aspect("equal", adjustable="datalim")
            axes.set_xlabel(shown(reference), parse_math=False)
        for row in np.reshape(grid, (rows, columns)):
            row[0].set_ylabel(_scale(analysis))
    return figure


def _case_means(
    results: Results, metric: str, reference: str, arm: str, cases: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the held-out cases of both arms, meaned over the seeds that both have."""
    one, other = results.of(reference, cases), results.of(arm, cases)
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in one.keys() & other.keys():
        others = other[seed].scores(metric)
        for case, score in one[seed].scores(metric).items():
            found.setdefault(case, []).append((score, others[case]))
    x, y = np.array([np.mean(pairs, 0) for pairs in found.values()]).reshape(-1, 2).T
    return x, y


def _figure(
    height: float, rows: int = 1, columns: int = 1, *, width: float = _WIDTH
) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _legend(figure: Figure, axes: Axes) -> None:
    """Legend above the figure, in as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    for columns in range(max(1, min(len(labels), 6)), 0, -1):
        place = {"loc": "outside upper center", "ncols": columns}
        legend = figure.legend(handles, labels, **place)
        if columns == 1 or legend.get_window_extent().width < 0.98 * figure.bbox.width:
            break
        legend.remove()


def _scale(analysis: Analysis) -> str:
    return f"{analysis.heading} ({analysis.unit})" if analysis.unit else analysis.heading
