"""Grid of a study: its arms, numbers of training cases and seeds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class PlannedRun:
    """Run of a study: one arm, number of training cases and seed.

    overrides: dotted config field -> value.
    """

    arm: str
    cases: int
    seed: int
    workdir: Path
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """Study as its file says it."""

    question: str
    arms: Mapping[str, Mapping[str, Any]]
    reference: str
    cases: tuple
    seeds: tuple[int, ...]
    metric: str
    reach: float
    compare: tuple[tuple[str, str], ...]
    common: Mapping[str, Any]
