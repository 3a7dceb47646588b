"""Analysis of a study: means of its arms, paired differences, and what they say in sentences."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from crossdim_jax import metrics
from crossdim_jax.errors import ConfigError, unknown_name
from crossdim_jax.storage.plain import json_safe
from crossdim_jax.study import statistics
from crossdim_jax.study.collect import Results
from crossdim_jax.study.grid import Study
from crossdim_jax.study.statistics import Difference, Sooner

ALPHA = 1 - statistics.LEVEL


@dataclasses.dataclass(frozen=True)
class Arm:
    """Scores of an arm with a number of training cases.

    Attributes:
      name, cases: of the arm, and how many training cases it had.
      mean: over the held-out cases of a seed, then over the seeds.
      sd: of the means of the seeds; NaN of one seed.
      seeds: seed -> mean over its held-out cases.
      held_out: number of held-out cases that have a score.
      by_class: mean of each class.
      reached: seed -> first step with the level of `Study.reach`, NaN if never.
    """

    name: str
    cases: int
    mean: float
    sd: float
    seeds: Mapping[int, float]
    held_out: int
    by_class: Mapping[str, float]
    reached: Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Arm against another with the same training cases, paired by case and seed.

    p_holm: the p-value adjusted for all comparisons of the study. by_class: not adjusted.
    """

    arm: str
    against: str
    cases: int
    difference: Difference
    by_class: Mapping[str, Difference]
    sooner: Sooner
    p_holm: float = math.nan

    @property
    def starred(self) -> bool:
        """True if p stays below 0.05 after Holm's correction, with enough seeds and cases."""
        return self.p_holm < ALPHA and not self.difference.few


@dataclasses.dataclass(frozen=True)
class Analysis:
    """Numbers of a study in printed units: "points" of a ratio in per cent, else the metric's."""

    metric: str
    heading: str
    unit: str
    reach: float
    regions: tuple[str, ...]
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]

    def sentences(self) -> list[str]:
        """The answer: a sentence for each comparison, and one on their number."""
        said = [self._sentence(comparison) for comparison in self.comparisons]
        return [*said, self._multiplicity()] if said else ["No two runs can be compared yet."]

    def summaries(self) -> list[str]:
        """The answer in short: a sentence for each pair of arms, over all numbers of cases."""
        pairs: dict[tuple[str, str], list[Comparison]] = {}
        for found in self.comparisons:
            pairs.setdefault((found.arm, found.against), []).append(found)
        return [self._summary(*pair, found) for pair, found in pairs.items()]

    def _summary(self, arm: str, against: str, found: Sequence[Comparison]) -> str:
        parts: dict[str, list[str]] = {}
        for comparison in found:
            d = comparison.difference
            span = "" if math.isnan(d.low) else f" [{number(d.low)}, {number(d.high)}]"
            size = f"{number(d.mean)}{span}" if d.pairs else "no pair"
            parts.setdefault(self._verdict(d), []).append(f"{comparison.cases} ({size})")
        said = "; ".join(f"{verdict} with {', '.join(sizes)}" for verdict, sizes in parts.items())
        return (
            f"{arm} against {against}, by training cases ({self.unit} of {self.heading}): {said}."
        )

    def _verdict(self, d: Difference) -> str:
        if d.few or math.isnan(d.low):
            return "too few to conclude from"
        if d.low <= 0 <= d.high:
            return "no difference shown"
        return self._words[0 if d.mean > 0 else 1]

    @property
    def _words(self) -> tuple[str, str]:
        return ("better", "worse") if self.metric == "dice" else ("higher", "lower")

    def _sentence(self, found: Comparison) -> str:
        d = found.difference
        start = f"With {cases_text(found.cases)} "
        if not d.pairs:
            return f"{start}{found.arm} and {found.against} cannot be compared: no seed has both."
        seeds = f"{d.seeds} seed{'s' * (d.seeds != 1)}"
        crossed = d.pairs == d.cases * d.seeds
        counted = f"{d.cases} cases x {seeds}" if crossed else f"{d.pairs} cases of {seeds}"
        if math.isnan(d.low):
            return f"{start}{found.arm} is {self._size(d.mean)} from {found.against} ({counted})."
        span = f"95 % interval {number(d.low)} to {number(d.high)}; {counted}"
        if d.few:
            return (
                f"{start}the mean of {found.arm} lies {self._size(d.mean)} from {found.against}'s "
                f"({span}): too few to conclude anything from."
            )
        if (verdict := self._verdict(d)) in self._words:
            alone = "" if found.starred else ", though not after the correction for all comparisons"
            return (
                f"{start}{found.arm} is {verdict} than {found.against} by "
                f"{number(abs(d.mean), sign=False)} {self.unit} of {self.heading} "
                f"(95 % interval {number(min(abs(d.low), abs(d.high)), sign=False)} to "
                f"{number(max(abs(d.low), abs(d.high)), sign=False)}; {counted})"
                f"{alone}."
            )
        low, high = (number(_outward(end)) for end in (d.low, d.high))
        return (
            f"{start}no difference between {found.arm} and {found.against} is shown: {span}. "
            f"Differences below {low} and above {high} {self.unit} are excluded, those between are "
            "not."
        )

    def _size(self, value: float) -> str:
        return f"{number(value)} {self.unit}"

    def _multiplicity(self) -> str:
        tested = [c for c in self.comparisons if not math.isnan(c.p_holm)]
        kept = [f"{c.arm} against {c.against}, {c.cases} cases" for c in tested if c.starred]
        if len(tested) < 2:
            return "Nothing else was compared: no correction for several comparisons is needed."
        if not kept:
            said = f"none is below {ALPHA:.2g}"
        else:
            said = f"{len(kept)} stay{'s' * (len(kept) == 1)} below {ALPHA:.2g}: {'; '.join(kept)}"
        return (
            f"{len(tested)} comparisons were made, and each interval is for one of them alone: of "
            "20 without any true difference one misses 0 by chance. After Holm's correction for "
            f"all, {said}."
        )


def analyse(study: Study, results: Results) -> Analysis:
    """Means, paired differences and steps of all finished runs.

    Raises ConfigError if no run was scored with the study's metric.
    """
    known = {name for found in results.finished for name in found.summary["definitions"]}
    if known and study.metric not in known:
        raise ConfigError(unknown_name("study.metric", study.metric, sorted(known)))
    row = metrics.find(study.metric)
    factor = row.factor if row else 1.0
    regions = results.finished[0].regions if results.finished else ()
    names = list(dict.fromkeys((*study.arms, *(f.run.arm for f in results.finished))))
    pairs = [(arm, study.reference) for arm in names if arm != study.reference]
    pairs = list(dict.fromkeys((*pairs, *map(tuple, study.compare))))
    table = _Table(results, study.metric, factor, study.reach, regions)
    counts = results.cases()
    arms = [table.arm(name, n) for n in counts for name in names if results.of(name, n)]
    found = [
        table.comparison(arm, against, n)
        for n in counts
        for arm, against in pairs
        if results.of(arm, n) and results.of(against, n)
    ]
    adjusted = statistics.holm([c.difference.p for c in found])
    return Analysis(
        metric=study.metric,
        heading=row.heading if row else study.metric,
        unit="points" if row and row.unit == "%" else (row.unit if row else ""),
        reach=study.reach,
        regions=regions,
        arms=tuple(arms),
        comparisons=tuple(
            dataclasses.replace(c, p_holm=p) for c, p in zip(found, adjusted, strict=True)
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    """Scores of the runs, by arm and number of training cases."""

    results: Results
    metric: str
    factor: float
    reach: float
    regions: tuple[str, ...]

    def scores(self, arm: str, cases: int, region: str = "") -> statistics.Scores:
        return {
            seed: {c: self.factor * v for c, v in found.scores(self.metric, region).items()}
            for seed, found in self.results.of(arm, cases).items()
        }

    def reached(self, arm: str, cases: int) -> dict[int, float]:
        return {
            seed: statistics.first_reached(*found.curve("train"), self.reach)
            for seed, found in self.results.of(arm, cases).items()
        }

    def arm(self, name: str, cases: int) -> Arm:
        scores = self.scores(name, cases)
        means = {seed: _mean(row.values()) for seed, row in scores.items()}
        known = {case for row in scores.values() for case, v in row.items() if not math.isnan(v)}
        values = [mean for mean in means.values() if not math.isnan(mean)]
        by_class = {
            region: _mean([_mean(r.values()) for r in self.scores(name, cases, region).values()])
            for region in self.regions
        }
        return Arm(
            name,
            cases,
            mean=_mean(values),
            sd=float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
            seeds=means,
            held_out=len(known),
            by_class=by_class,
            reached=self.reached(name, cases),
        )

    def comparison(self, arm: str, against: str, cases: int) -> Comparison:
        def of(region: str = "") -> Difference:
            return statistics.difference(
                self.scores(arm, cases, region), self.scores(against, cases, region)
            )

        return Comparison(
            arm,
            against,
            cases,
            difference=of(),
            by_class={region: of(region) for region in self.regions},
            sooner=statistics.sooner(self.reached(arm, cases), self.reached(against, cases)),
        )


def _mean(values) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def cases_text(cases: int) -> str:
    """Number of training cases in words."""
    return f"{cases} training case{'s' * (cases != 1)}"


def number(value: float, *, sign: bool = True) -> str:
    """Difference as printed: one decimal, more where it would show nothing; a proper minus."""
    digits = _digits(value)
    return f"{value:{'+' if sign and value else ''}.{digits}f}".replace("-", "\u2212")


def _digits(value: float) -> int:
    return 1 if abs(value) >= 0.095 or value == 0 else 2 if abs(value) >= 0.0095 else 3


def _outward(value: float) -> float:
    """The next number from 0 on that `number` prints: what is beyond it is beyond the value."""
    digits = _digits(value)
    return math.copysign(math.ceil(abs(value) * 10**digits - 1e-9) / 10**digits, value)


def plain(analysis: Analysis) -> dict[str, Any]:
    """Analysis as values that JSON can hold."""
    record = dataclasses.asdict(analysis)
    for entry, comparison in zip(record["comparisons"], analysis.comparisons, strict=True):
        entry |= {"few": comparison.difference.few, "starred": comparison.starred}
    return json_safe(record | {"answer": analysis.sentences()})


def csv_rows(record: Mapping[str, Any], results: Results) -> Iterator[Sequence[Any]]:
    """Rows of study.csv: every number of `plain` and of the runs unrounded, one a line."""
    yield ["table", "arm", "against", "cases", "seed", "class", "quantity", "value"]
    for arm in record["arms"]:
        start = ["arm", arm["name"], "", arm["cases"]]
        for name in ("mean", "sd", "held_out"):
            yield [*start, "", "", name, arm[name]]
        for name in ("seeds", "reached"):
            quantity = {"seeds": "mean", "reached": "step_reached"}[name]
            yield from ([*start, seed, "", quantity, v] for seed, v in arm[name].items())
        yield from ([*start, "", region, "mean", v] for region, v in arm["by_class"].items())
    for found in record["comparisons"]:
        start = ["difference", found["arm"], found["against"], found["cases"]]
        for region, values in {"": found["difference"], **found["by_class"]}.items():
            for name, value in values.items():
                if name == "seed_means":
                    yield from ([*start, seed, region, "mean", v] for seed, v in value.items())
                elif name != "over":
                    yield [*start, "", region, name, value]
        yield [*start, "", "", "p_holm", found["p_holm"]]
        yield from ([*start, "", "", f"sooner_{n}", v] for n, v in found["sooner"].items())
    for found in results.finished:
        start = ["run", found.run.arm, "", found.run.cases, found.run.seed, ""]
        costs = ("steps", "seconds", "seconds_per_step")
        yield from ([*start, name, getattr(found, name)] for name in costs)
        costs = ("parameters", "peak_memory_mb")
        yield from ([*start, name, found.cost.get(name)] for name in costs)
