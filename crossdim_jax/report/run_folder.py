"""What a run folder holds, read for the report; every file may be absent or half written."""

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# (label, quantile of the cases sorted by mean Dice), in the order of the rows
RANKS = (
    ("Best", 1.0),
    ("75th percentile", 0.75),
    ("Median", 0.5),
    ("25th percentile", 0.25),
    ("Worst", 0.0),
)


def select(
    rows: Sequence[Mapping[str, Any]], regions: Sequence[str]
) -> list[tuple[str, Mapping[str, Any]]]:
    """Best, 75th percentile, median, 25th percentile and worst case by mean Dice over the regions.

    Returns (label, row), best first, every case once: with fewer than five cases, one case has all
    the labels that apply ("Best, 75th percentile"). Ties are ordered by id.
    """
    ranked = sorted(rows, key=lambda row: (mean_dice(row, regions), row["id"]))
    labels: dict[int, list[str]] = {}
    for label, quantile in RANKS:
        nearest = math.floor(quantile * (len(ranked) - 1) + 0.5)
        labels.setdefault(nearest, []).append(label)
    return [(",\n".join(names), ranked[index]) for index, names in labels.items()]


def mean_dice(row: Mapping[str, Any], regions: Sequence[str]) -> float:
    """Mean of a case's Dice over the regions that have one; 0 if none has."""
    values = [row[key] for r in regions if not math.isnan(row.get(key := f"dice_{r}", math.nan))]
    return sum(values) / len(values) if values else 0.0


def read_cases(path: Path) -> list[dict[str, Any]]:
    """Rows of cases.csv: "id" and "note" as text, the rest numbers, NaN where empty."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {k: v if k in ("id", "note") else float(v or "nan") for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


def read_metrics(path: Path) -> tuple[list[dict], list[dict], int]:
    """Training rows, validation rows, and the number of unreadable lines of metrics.jsonl.

    A step logged twice, as after resuming, counts once, as logged last. Numbers that are not
    finite become None.
    """
    kinds: dict[str, dict[int, dict]] = {"train": {}, "validation": {}}
    unread = 0
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
                finite = {
                    k: None if isinstance(v, float) and not math.isfinite(v) else v
                    for k, v in row.items()
                }
                float(finite["epoch"])
                if row["kind"] in kinds:
                    kinds[row["kind"]][int(row["step"])] = finite
            except (ValueError, TypeError, KeyError, AttributeError):
                unread += bool(line.strip())
    train, validation = ([rows[s] for s in sorted(rows)] for rows in kinds.values())
    return train, validation, unread


def read_json(path: Path) -> Any:
    """The content; None if the file is absent or, with a warning, not readable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s: not readable, left out of the report: %s", path, error)
        return None
