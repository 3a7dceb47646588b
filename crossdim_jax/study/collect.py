"""Finished runs of a study, read for its analysis.

A run that is missing or damaged is named with the reason, and nothing is guessed in its place.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.report.reading import ANEW, CASES, SUMMARY, read_cases, read_metrics, read_summary
from crossdim_jax.storage.run_folder import METRICS, read_cost
from crossdim_jax.study.grid import PlannedRun
from crossdim_jax.text import without_folders


@dataclasses.dataclass(frozen=True)
class Finished:
    """Run that was trained and scored.

    Attributes:
      run: as planned.
      rows: case -> its scores, such as "dice_WT", NaN where undefined.
      summary: of the evaluation.
      train, validation: rows of metrics.jsonl.
      cost: what was recorded of "parameters", "peak_memory_mb", "device" and "devices".
      notes: what a reader should know, such as lines that could not be read.
    """

    run: PlannedRun
    rows: Mapping[str, Mapping[str, float]]
    summary: Mapping[str, Any]
    train: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    cost: Mapping[str, Any]
    notes: Sequence[str] = ()

    @property
    def regions(self) -> tuple[str, ...]:
        """Classes that are scored."""
        return tuple(self.summary["regions"])

    @property
    def steps(self) -> int:
        """Last step that was logged."""
        return self.train[-1]["step"] if self.train else 0

    @property
    def seconds(self) -> float:
        """Training time; NaN if it is not logged."""
        seconds = self.train[-1].get("seconds") if self.train else None
        return math.nan if seconds is None else seconds

    @property
    def seconds_per_step(self) -> float:
        """Median between two lines of the log: without what happens once, such as compiling."""
        times = [(r["step"], r["seconds"]) for r in self.train if r.get("seconds") is not None]
        if len(times) < 2:
            return math.nan
        steps, seconds = np.diff(np.array(times, float), axis=0).T
        return float(np.median(seconds / steps))

    def scores(self, metric: str, region: str = "") -> dict[str, float]:
        """Score of each case: of one class, or the mean over those that the case has.

        NaN if the case has none.
        """
        regions = [region] if region else self.regions
        columns = [f"{metric}_{name}" for name in regions]
        return {case: _mean([row.get(c) for c in columns]) for case, row in self.rows.items()}

    def curve(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and Dice of the training ("train") or of the validation cases ("validation")."""
        rows = self.train if kind == "train" else self.validation
        pairs = [(row["step"], row["dice"]) for row in rows if row.get("dice") is not None]
        steps, dice = np.array(pairs, float).reshape(-1, 2).T
        return steps, dice


@dataclasses.dataclass(frozen=True)
class Results:
    """Runs of a study. missing: (run, why) of those without scores."""

    finished: tuple[Finished, ...]
    missing: tuple[tuple[PlannedRun, str], ...]

    def cases(self) -> list[int]:
        """Numbers of training cases that runs were finished with."""
        return sorted({found.run.cases for found in self.finished})

    def of(self, arm: str, cases: int) -> dict[int, Finished]:
        """Seed -> run, of an arm and a number of training cases."""
        return {f.run.seed: f for f in self.finished if (f.run.arm, f.run.cases) == (arm, cases)}


def read(runs: Sequence[PlannedRun]) -> Results:
    """Results of the planned runs, each read from its run folder.

    Raises DataError, naming two run folders, if they were not scored on the same held-out cases,
    classes, labels and definitions though they have the same seed.
    """
    finished, missing = [], []
    for run in runs:
        try:
            finished.append(_read(run))
        except DataError as error:
            missing.append((run, without_folders(str(error), [run.workdir / "any"])))
    _require_alike(finished)
    return Results(tuple(finished), tuple(missing))


def _read(run: PlannedRun) -> Finished:
    folder = Path(run.workdir)
    for name, what in (("", "started"), (METRICS, "trained"), (CASES, "scored")):
        if not os.path.lexists(folder / name):
            raise DataError(f"not {what} yet")
    if not os.path.lexists(folder / SUMMARY):
        raise DataError(f"{folder / SUMMARY}: not found though {CASES} is; {ANEW}")
    rows = {row["id"]: row for row in read_cases(folder / CASES)}
    summary = read_summary(folder / SUMMARY)
    train, validation, unread = read_metrics(folder / METRICS)
    if summary["n_cases"] != len(rows):
        raise DataError(
            f"{folder / CASES}: has {len(rows)} cases and {SUMMARY} says {summary['n_cases']}; "
            f"{ANEW}"
        )
    notes = [f"{unread} lines of {METRICS} could not be read"] if unread else []
    return Finished(run, rows, summary, train, validation, read_cost(folder), notes)


def _require_alike(finished: Sequence[Finished]) -> None:
    """Raises DataError if runs cannot be compared case by case."""
    of_seed: dict[int, Finished] = {}
    for found in finished:
        first, twin = finished[0], of_seed.setdefault(found.run.seed, found)
        for other, what in ((twin, _other_cases(twin, found)), (first, _otherwise(first, found))):
            if what:
                raise DataError(
                    f"{other.run.workdir} and {found.run.workdir} were scored with {what}, and "
                    "cannot be compared case by case; see that both had the same data and the same "
                    "data.split, remove the one that had not, and start the study again"
                )


def _other_cases(one: Finished, other: Finished) -> str:
    odd = sorted(one.rows.keys() ^ other.rows.keys())
    if not odd:
        return ""
    return f"other held-out cases ({len(odd)} are in one only, such as {odd[0]})"


def _otherwise(one: Finished, other: Finished) -> str:
    truths, others = (found.summary.get("truths", {}) for found in (one, other))
    if odd := sorted(c for c in truths.keys() & others.keys() if truths[c] != others[c]):
        return f"other labels of the same cases, such as {odd[0]}"
    if one.regions != other.regions:
        return f"other classes ({', '.join(one.regions)} and {', '.join(other.regions)})"
    if one.summary["definitions"] != other.summary["definitions"]:
        return "metrics of other definitions"
    return ""


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
