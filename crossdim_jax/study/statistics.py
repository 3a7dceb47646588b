"""Paired statistics of trainings: the same held-out cases, scored by the networks of several seeds.

A difference d[s, c] belongs to a seed s and a case c. Seeds and cases are both drawn at random and
crossed: a seed shifts all cases, and a case is hard in all seeds. What is asked is the mean over
*other* seeds and *other* cases, so both kinds of chance belong into the interval.

Sources:
  Satterthwaite 1946, An approximate distribution of estimates of variance components.
  Hillis 2007, A comparison of denominator degrees of freedom methods for multiple observer ROC
    analysis, Statistics in Medicine 26: readers and cases, crossed as seeds and cases are here.
  Owen 2007, The pigeonhole bootstrap, Annals of Applied Statistics 1: rows and columns resampled.
  Phipson and Smyth 2010, Permutation p-values should never be zero.
  Holm 1979, A simple sequentially rejective multiple test procedure.

Everything is a pure function; what draws random numbers always draws the same ones.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

LEVEL = 0.95
FEW_SEEDS, FEW_CASES = 3, 10  # with fewer an interval is shown with a warning
RESAMPLES = 10_000
EXACT = 14  # sign flips of up to so many differences are all tried

Scores = Mapping[int, Mapping[str, float]]  # seed -> case -> score


@dataclasses.dataclass(frozen=True)
class Difference:
    """Difference of two arms in the unit of the scores; NaN where it cannot be told.

    Attributes:
      mean: over seeds and cases.
      low, high: 95 % interval for other seeds and other cases, see `interval`.
      p: two-sided, of the same t distribution: at most 0.05 if 0 is not within the interval.
      p_permutation: for these networks and other cases, see `sign_flip`.
      bootstrap_low, bootstrap_high: plain hierarchical bootstrap, see `bootstrap`.
      degrees: of freedom of the interval.
      seeds, cases, pairs: numbers of seeds, cases, and (seed, case) pairs in the mean.
      left_out: cases without a score in an arm or a seed.
      over: what the interval knows the chance of: "seeds and cases", "seeds", "cases" or "".
      seed_means: mean difference of each seed.
    """

    mean: float
    low: float
    high: float
    p: float
    p_permutation: float
    bootstrap_low: float
    bootstrap_high: float
    degrees: float
    seeds: int
    cases: int
    pairs: int
    left_out: int
    over: str
    seed_means: Mapping[int, float]

    @property
    def few(self) -> bool:
        """True if there are too few seeds or cases to conclude anything."""
        return self.seeds < FEW_SEEDS or self.cases < FEW_CASES


def difference(scores: Scores, reference: Scores) -> Difference:
    """Difference `scores - reference`, paired by seed and case.

    Seeds of only one arm are left out. Cases are crossed with the seeds if every seed has the same;
    one without a score (NaN) in any of them is left out then. If seeds have other held-out cases,
    as folds do, each seed counts with the mean of its own, and the interval is over seeds.
    """
    seeds = sorted(scores.keys() & reference.keys())
    pairs = {
        seed: {
            case: value - reference[seed][case]
            for case, value in scores[seed].items()
            if case in reference[seed]
        }
        for seed in seeds
    }
    known = {seed: {c for c, v in row.items() if not math.isnan(v)} for seed, row in pairs.items()}
    everything = set().union(*(row.keys() for row in pairs.values()))
    crossed = all(row.keys() == everything for row in pairs.values())
    if crossed:
        common = sorted(set.intersection(*known.values())) if seeds else []
        used = {seed: common for seed in seeds if common}
        d = np.array([[pairs[seed][case] for case in common] for seed in used])
        d = d.reshape(len(used), len(common))
    else:
        used = {seed: sorted(cases) for seed, cases in known.items() if cases}
        d = np.array([[np.mean([pairs[s][case] for case in used[s]])] for s in used])
        d = d.reshape(len(used), 1)
    cases = set().union(*used.values())
    return Difference(
        **_described(d),
        seeds=len(used),
        cases=len(cases),
        pairs=sum(map(len, used.values())),
        left_out=len(everything - cases),
        seed_means=dict(zip(used, d.mean(1).tolist() if d.size else [], strict=True)),
    )


def _described(d: np.ndarray) -> dict[str, float | str]:
    """Statistics of differences (seeds, cases), as `Difference` names them."""
    over = [name for name, n in zip(("seeds", "cases"), d.shape, strict=True) if n > 1]
    nothing = ("low", "high", "p", "p_permutation", "bootstrap_low", "bootstrap_high", "degrees")
    found: dict[str, float | str] = dict.fromkeys(nothing, math.nan)
    found |= {"mean": float(d.mean()) if d.size else math.nan, "over": " and ".join(over)}
    if not d.size or not over:
        return found
    low, high, p, degrees = interval(d)
    units = d.mean(0) if d.shape[1] > 1 else d[:, 0]
    resampled = bootstrap(d)
    values = (low, high, p, sign_flip(units), *resampled, degrees)
    return found | dict(zip(nothing, map(float, values), strict=True))


def interval(d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Interval for the mean of crossed random effects: (low, high, p, degrees of freedom).

    d = mean + seed + case + residual, all random. With the mean squares of the two-way table the
    variance of the mean is estimated by (MS_seed + max(MS_case - MS_residual, 0)) / (S C), as for
    readers and cases (Hillis 2007), and t has Satterthwaite's degrees of freedom, over all mean
    squares, but not fewer than the smaller of S - 1 and C - 1. With one seed or one case it is
    Student's interval over the other: the chance of the one is not in it.

    d: (..., seeds, cases), two or more of one of them; leading axes are separate tables.
    """
    seeds, cases = d.shape[-2:]
    mean = d.mean((-2, -1))
    if min(seeds, cases) == 1:
        units = d.reshape(*d.shape[:-2], -1)
        variance, degrees = units.var(-1, ddof=1) / units.shape[-1], units.shape[-1] - 1.0
        degrees = np.broadcast_to(degrees, mean.shape)
    else:
        variance, degrees = _two_way(d)
    error = np.sqrt(variance)
    half = stats.t.ppf((1 + LEVEL) / 2, degrees) * error
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    return mean - half, mean + half, 2 * stats.t.sf(t, degrees), degrees


def _two_way(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variance of the mean of (..., seeds, cases), and its degrees of freedom."""
    seeds, cases = d.shape[-2:]
    mean = d.mean((-2, -1), keepdims=True)
    of_seeds, of_cases = d.mean(-1, keepdims=True), d.mean(-2, keepdims=True)
    ms_seed = cases * ((of_seeds - mean) ** 2).sum((-2, -1)) / (seeds - 1)
    ms_case = seeds * ((of_cases - mean) ** 2).sum((-2, -1)) / (cases - 1)
    free = (seeds - 1) * (cases - 1)
    ms_rest = ((d - of_seeds - of_cases + mean) ** 2).sum((-2, -1)) / free
    has_cases = ms_case > ms_rest
    total = ms_seed + np.where(has_cases, ms_case - ms_rest, 0)
    further = np.where(has_cases, ms_case**2 / (cases - 1) + ms_rest**2 / free, 0)
    spread = ms_seed**2 / (seeds - 1) + further
    fewest = min(seeds, cases) - 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.where(spread > 0, total**2 / spread, fewest)
    return total / (seeds * cases), np.maximum(degrees, fewest)


def bootstrap(d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Percentiles of the hierarchical bootstrap: seeds and cases resampled, each by themselves.

    Owen 2007. Of few seeds it is no interval to rely on: it cannot see more than the seeds there
    are (too narrow where seeds differ), and counts the residual three times (too wide elsewhere).

    d: (..., seeds, cases).
    """
    seeds, cases = (_resampled(n, axis) for axis, n in enumerate(d.shape[-2:]))
    means = np.einsum("bs,...sc,bc->...b", seeds, d, cases, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=-1)
    return low, high


def sign_flip(values: np.ndarray) -> np.ndarray:
    """Permutation p-value, two-sided: how often flipped signs give a mean as far from 0.

    A value is a case's difference, meaned over the seeds: its sign is flipped for all seeds
    together. Tested is whether *these* trained networks differ on cases of this kind; it says
    nothing of what other seeds would have given, as flips of whole seeds could not go below 0.25
    with three of them. Exact up to 14 values; else of 10 000 flips, and never 0.

    values: (..., n).
    """
    signs = _signs(values.shape[-1])
    flipped = np.abs(values @ signs.T)
    bound = np.abs(values.sum(-1, keepdims=True))
    return (flipped >= bound * (1 - 1e-9)).mean(-1)


@functools.cache
def _resampled(n: int, axis: int) -> np.ndarray:
    """Weights (resample, item) of the bootstrap: how often an item is drawn, of n draws."""
    rng = np.random.default_rng([n, axis])
    return rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n


@functools.cache
def _signs(n: int) -> np.ndarray:
    """Signs (flip, item), the signs as they are among them."""
    if n <= EXACT:
        return np.array(list(itertools.product((1.0, -1.0), repeat=n)))
    signs = np.random.default_rng(n).choice((1.0, -1.0), (RESAMPLES, n))
    signs[0] = 1.0
    return signs


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, for all comparisons together; NaN is none and stays."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def running(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the values, each place with the ones before it.

    NaN where there are not enough yet. Of 20 values or fewer each is its own mean.
    """
    width = max(1, math.ceil(len(values) / 20))
    means = np.full(len(values), math.nan)
    if len(values):
        means[width - 1 :] = np.convolve(values, np.full(width, 1 / width), "valid")
    return means


def first_reached(steps: np.ndarray, values: np.ndarray, level: float) -> float:
    """First step at which the running mean is at least `level`; NaN if it never is."""
    reached = np.flatnonzero(running(values) >= level)
    return float(steps[reached[0]]) if reached.size else math.nan


@dataclasses.dataclass(frozen=True)
class Sooner:
    """Steps to reach a level against the reference's, over the seeds where both reach it.

    steps: mean difference, negative if sooner. ratio: geometric mean. seeds: how many there are.
    never, reference_never: seeds in which the arm, or the reference, did not reach it.
    """

    steps: float
    ratio: float
    seeds: int
    never: int
    reference_never: int


def sooner(steps: Mapping[int, float], reference: Mapping[int, float]) -> Sooner:
    """Paired comparison of `first_reached`, by seed."""
    both = sorted(steps.keys() & reference.keys())
    a, b = (np.array([of[seed] for seed in both], float) for of in (steps, reference))
    good = ~np.isnan(a) & ~np.isnan(b)
    return Sooner(
        steps=float((a - b)[good].mean()) if good.any() else math.nan,
        ratio=float(np.exp(np.log(a[good] / b[good]).mean())) if good.any() else math.nan,
        seeds=int(good.sum()),
        never=int(np.isnan(a).sum()),
        reference_never=int(np.isnan(b).sum()),
    )
