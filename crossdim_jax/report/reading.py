"""Records of a run folder, read for the report; every file may be absent.

One that is there and not what it should be is an error, which the report prints in its place.
"""

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdim_jax import metrics
from crossdim_jax.errors import DataError
from crossdim_jax.storage import metrics_file, plain, records
from crossdim_jax.storage.records import is_number
from crossdim_jax.storage.run_folder import EVALUATION
from crossdim_jax.text import shown

SUMMARY, CASES = f"{EVALUATION}/summary.json", f"{EVALUATION}/cases.csv"

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
    """Rows of cases.csv: "id" and "note" as text, the scores as numbers, NaN where empty.

    Also as a spreadsheet saves it, in which columns may be moved or added: of those that are no
    scores only those that hold numbers are kept. No rows if the file is absent.

    Raises DataError, naming the file, if it cannot be read, a score is no number, or a case is
    there twice.
    """
    if not os.path.lexists(path):
        return []
    try:
        heading, *rows = plain.csv_rows(path, first="id")
    except DataError as error:
        raise DataError(f"{error}; {ANEW}") from error
    if twice := sorted({name for name in heading if name and heading.count(name) > 1}):
        raise DataError(f"{path}: has several columns {twice[0]!r}; {ANEW}")
    table = []
    for row in rows:
        if any(map(str.strip, row[len(heading) :])):
            raise DataError(f"{path}: case {row[0]} has more cells than there are columns; {ANEW}")
        cells = itertools.zip_longest(heading, row[: len(heading)], fillvalue="")
        table.append(dict(cells))
    known = [name for name in heading if metrics.find(name.rpartition("_")[0])]
    further = set(heading) - {*known, *TEXTS, ""}
    columns = [
        name for name in heading if name in known or name in further and _numeric(table, name)
    ]
    found: dict[str, dict[str, Any]] = {}
    for row in table:
        name = row["id"]
        if name in found:
            raise DataError(f"{path}: case {name} is there more than once; {ANEW}")
        scores = {column: _number(row[column]) for column in columns}
        if wrong := [column for column, score in scores.items() if score is None]:
            text = shown(row[wrong[0]])[:40]
            raise DataError(f"{path}: {wrong[0]} of case {name} is {text!r}, no number; {ANEW}")
        found[name] = {"id": name, **scores, "note": row.get("note", "")}
    return list(found.values())


ANEW = "--mode=evaluate makes it anew"
TEXTS = ("id", "note")


def _number(text: str) -> float | None:
    """Number in a cell; NaN if empty, None if it is no number; a comma may stand for the point."""
    text = text.strip().replace(",", ".")
    try:
        number = float(text or "nan")
    except ValueError:
        return None
    return None if "_" in text or math.isinf(number) else number


def _numeric(table: Sequence[Mapping[str, str]], column: str) -> bool:
    return all(_number(row[column]) is not None for row in table)


def read_metrics(path: Path) -> tuple[list[dict], list[dict], int]:
    """Training rows, validation rows, and the number of unreadable lines of metrics.jsonl.

    A step logged twice, as after resuming, counts once, as logged last. Numbers that are not
    finite become None. Raises DataError, naming the file, if it cannot be read at all.
    """
    kinds: dict[str, dict[int, dict]] = {"train": {}, "validation": {}}
    unread = 0
    for line in metrics_file.lines(path):
        row = metrics_file.record(line)
        if row is None or not is_number(row.get("epoch")) or not _plain(row):
            unread += bool(line.strip())
        elif row["kind"] in kinds:
            kinds[row["kind"]][row["step"]] = row
    train, validation = ([rows[s] for s in sorted(rows)] for rows in kinds.values())
    return train, validation, unread


def _plain(row: Mapping[str, Any]) -> bool:
    """True if all but the kind are numbers or unknown."""
    return all(v is None or is_number(v) for name, v in row.items() if name != "kind")


_STATISTICS = records.objects_of(
    records.Form(
        "an object of numbers or null",
        lambda v: isinstance(v, dict) and all(x is None or is_number(x) for x in v.values()),
    )
)


def _is_table(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and records.TEXT.holds(value.get("title"))
        and isinstance(value.get("shown"), bool)
        and records.TEXTS.holds(value.get("columns"))
        and records.TEXTS.holds(value.get("notes"))
        and isinstance(value.get("rows"), list)
        and all(
            isinstance(row, list) and len(row) == len(value["columns"]) for row in value["rows"]
        )
    )


def _is_group(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and records.COUNT.holds(value.get("n_cases"))
        and _STATISTICS.holds(value.get("statistics"))
    )


def read_summary(path: Path) -> dict[str, Any]:
    """Summary of an evaluation; empty if there is none.

    Raises DataError, naming the file, if it is not what `evaluation.score.evaluate_cases` writes.
    """
    if not os.path.lexists(path):
        return {}
    groups = records.Form("groups of cases with their statistics", _is_group)
    made = records.Form(
        "a list of tables", lambda v: isinstance(v, list) and all(map(_is_table, v))
    )
    return records.read_record(
        path,
        {
            "regions": records.NAMES,
            "definitions": records.objects_of(records.TEXT),
            "n_cases": records.COUNT,
            "statistics": _STATISTICS,
        },
        optional={
            **dict.fromkeys(("challenge", "profile", "aggregation"), records.TEXT),
            "groups": records.objects_of(groups),
            "tables": made,
            "truths": records.objects_of(records.TEXT),
            "provenance": records.FIELDS,
            **dict.fromkeys(("mismatched", "failed", "missing"), records.NOTES),
        },
        remedy=ANEW,
    )
