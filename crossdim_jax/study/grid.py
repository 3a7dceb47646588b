"""The grid of a study: arms, which are named changes of one config, by training cases, by seeds."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from crossdim_jax.errors import ConfigError
from crossdim_jax.ranges import UINT32, Number, refuse

# What a study sets in every run unless `common` says otherwise: the weights after the last step are
# compared, and of each run folder one set of weights stays.
ENFORCED: dict[str, Any] = {
    "train.choose": "last",
    "train.checkpoint_every_steps": 0,
    "train.keep": 1,
    "train.keep_state": False,
}
# Fields, as patterns, that are the same in every arm: else nothing could be compared in pairs.
EQUAL = (r"data\.(root|cache|split)(\..*)?", r"challenge\.root", r"train\.steps_per_epoch")
SET = (r"seed", r"data\.cases")  # by the study's own `seeds` and `cases`
FIELDS = (
    "question", "arms", "axes", "reference", "cases", "seeds", "metric", "reach", "common",
    "compare", "fold_by_seed",
)  # fmt: skip
_NAME = re.compile(r"\w[\w+=-]*", re.ASCII)
_TAKEN = ("figures",)  # lie beside the arms' folders
_COUNT, _FRACTION = Number("[1, 1000000]", whole=True), Number("(0, 1]")
_SEED, _REACH = Number(f"[0, {UINT32}]", whole=True), Number("(0, 1)")


@dataclasses.dataclass(frozen=True)
class Study:
    """A study.

    Attributes:
      question: in a sentence.
      arms: name -> {dotted field of the config: value}.
      reference: the arm that all others are compared with.
      cases: numbers (int) or fractions (float) of training cases; None for all.
      seeds: of draws of cases, initial values and batches.
      metric: that is compared.
      reach: training Dice whose first step is reported.
      compare: pairs of arms that are compared besides.
      common: dotted field -> value in all arms.
      fold_by_seed: True if seed S holds out fold S of the config's split.
    """

    question: str
    arms: Mapping[str, Mapping[str, Any]]
    reference: str
    cases: tuple[int | float | None, ...]
    seeds: tuple[int, ...]
    metric: str
    reach: float
    compare: tuple[tuple[str, str], ...]
    common: Mapping[str, Any]
    fold_by_seed: bool = False

    def of_seed(self, seed: int) -> dict[str, Any]:
        """Dotted fields of the config that a seed sets."""
        return {"seed": seed} | ({"data.split.fold": seed} if self.fold_by_seed else {})


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run of a study.

    Attributes:
      arm: its name.
      cases: number of training cases.
      seed: of the run.
      workdir: its run folder.
      overrides: dotted field -> value, all that the study sets.
    """

    arm: str
    cases: int
    seed: int
    workdir: Path
    overrides: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Path of the run folder from that of the study."""
        return "/".join(self.workdir.parts[-3:])

    def __str__(self):
        return f"{self.arm}, {self.cases} cases, seed {self.seed}"


def read(fields: Mapping[str, Any]) -> Study:
    """The study that a study file describes.

    Args:
      fields: plain values; changes of the config as dotted fields or as nested sections. `axes`
        are {axis: arms}: each arm of one with each of the others, named "first-second"; a later
        axis has the last word on a field that several set.

    Raises:
      ConfigError: with all that is wrong.
    """
    found: list[str] = []
    given = {"cases": (None,), "seeds": (0, 1, 2), "metric": "dice", "reach": 0.7} | dict(fields)
    if unknown := sorted(set(given) - set(FIELDS)):
        found.append(f"study.{', study.'.join(unknown)}: unknown; known: {', '.join(FIELDS)}")
    try:
        arms = _product(given.get("axes") or {}) | _arms(given.get("arms") or {})
        common = _changes(given.get("common") or {})
        cases = _values(given["cases"]) or (None,)
        seeds = _values(given["seeds"])
        compare = tuple(tuple(pair) for pair in given.get("compare") or ())
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"the study cannot be read ({error}): expected arms, axes and common as in "
            "configs/studies/common.py, and sequences for cases, seeds and compare"
        ) from error
    study = Study(
        question=given.get("question") or "",
        arms=arms,
        reference=given.get("reference") or "",
        cases=cases,
        seeds=seeds,
        metric=given["metric"],
        reach=given["reach"],
        compare=compare,
        common=common,
        fold_by_seed=bool(given.get("fold_by_seed")),
    )
    refuse([*found, *_problems(study)])
    return study


def _values(values: Any) -> tuple:
    if values is None:
        return ()
    return (values,) if isinstance(values, int | float) else tuple(values)


def _changes(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted field -> value, of dotted fields or nested sections."""
    return flatten_dict(dict(changes), sep=".")


def _arms(arms: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(name): _changes(changes or {}) for name, changes in arms.items()}


def _product(axes: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arms of each choice on one axis with each on the others; none if there are no axes.

    A field that several axes set has the value of the last of them.
    """
    if not axes:
        return {}
    result = {}
    for choices in itertools.product(*(_arms(axis).items() for axis in axes.values())):
        names, changes = zip(*choices, strict=True)
        result["-".join(names)] = {k: v for change in changes for k, v in change.items()}
    return result


def _problems(study: Study) -> Iterator[str]:
    """All that is wrong with a study by itself."""
    arms = study.arms
    if not isinstance(study.question, str) or not study.question.strip():
        yield "study.question is empty: say in a sentence what the study is to answer"
    if len(arms) < 2:
        yield f"study.arms: {len(arms)} found; expected two or more to compare, in arms or axes"
    for name in arms:
        if not _NAME.fullmatch(name) or name in _TAKEN:
            yield (
                f"study.arms: {name!r} names a folder; expected letters, digits and _ + = -, "
                f"and none of {', '.join(_TAKEN)}"
            )
    listed = ", ".join(arms)
    if study.reference not in arms:
        yield f"study.reference={study.reference!r}: expected one of the arms, {listed}"
    for pair in study.compare:
        if len(pair) != 2 or len(set(pair)) != 2 or not set(pair) <= set(arms):
            yield f"study.compare: {pair!r} found; expected pairs of two of the arms, {listed}"
    yield from _number_problems(study)
    yield from _field_problems(study)


def _number_problems(study: Study) -> Iterator[str]:
    for n in study.cases:
        kind = _FRACTION if isinstance(n, float) else _COUNT
        if n is not None and not kind.holds(n):
            yield (
                f"study.cases: {n!r} found; expected numbers of cases, 1 or more, fractions in "
                "(0, 1] as 0.25, or None for all"
            )
    if not study.seeds:
        yield "study.seeds is empty; expected seeds such as (0, 1, 2)"
    for seed in study.seeds:
        if not _SEED.holds(seed):
            yield f"study.seeds: {seed!r} found; each {_SEED.expected}"
    for name, values in (("cases", study.cases), ("seeds", study.seeds)):
        if len(set(values)) < len(values):
            yield f"study.{name}={values}: each once is expected"
    if not _REACH.holds(study.reach):
        yield f"study.reach={study.reach!r}: expected {_REACH.expected} (a Dice)"
    if not isinstance(study.metric, str) or not study.metric:
        yield f"study.metric={study.metric!r}: expected the name of a metric, such as 'dice'"


def _field_problems(study: Study) -> Iterator[str]:
    """Fields that the study itself sets, or that must be the same in all arms."""
    for where, changes in [("common", study.common), *study.arms.items()]:
        for field in changes:
            if any(re.fullmatch(pattern, field) for pattern in SET):
                yield f"{where}: {field} is set by study.seeds and study.cases; remove it"
            elif where != "common" and any(re.fullmatch(pattern, field) for pattern in EQUAL):
                yield (
                    f"arm {where}: {field} must be the same in all arms, or they cannot be "
                    "compared; set it in study.common or on the command line, --config.FIELD=..."
                )


def changes(study: Study, arm: str) -> dict[str, Any]:
    """All that the study sets in an arm: dotted field -> value."""
    return {**ENFORCED, **study.common, **study.arms[arm]}


def runs(study: Study, numbers: Sequence[int], workdir: Path) -> list[PlannedRun]:
    """Runs in their order: seed by seed, so that a study that is broken off has whole pairs.

    Args:
      study: of the runs.
      numbers: of training cases, one for each of `study.cases`.
      workdir: folder of the study.
    """
    return [
        PlannedRun(
            arm,
            number,
            seed,
            workdir / arm / f"n_{number}" / f"seed_{seed}",
            {**changes(study, arm), **study.of_seed(seed), "data.cases": asked},
        )
        for seed in study.seeds
        for asked, number in zip(study.cases, numbers, strict=True)
        for arm in study.arms
    ]


def part(planned: Sequence[PlannedRun], text: str) -> list[PlannedRun]:
    """Runs of one of several processes or hosts: a consecutive stretch, so that it has whole pairs.

    text: "I/N", parts I from 0 to N - 1, that have as many runs but for one; "" for all.

    Raises ConfigError if it is something else.
    """
    if not text:
        return list(planned)
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    index, count = map(int, match.groups()) if match else (0, 0)
    if index >= count:
        raise ConfigError(
            f"--study_part={text}: expected I/N with I from 0 to N-1, such as 0/4 for the first "
            "of four"
        )
    return list(planned[index * len(planned) // count : (index + 1) * len(planned) // count])
