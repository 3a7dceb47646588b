"""Tables of a CHAOS evaluation: the five tasks as in Table 4 of the paper, and each organ."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from crossdim_jax.challenges.base import Evaluated, Table
from crossdim_jax.challenges.chaos import layouts

LIVER, ALL = 1, 4  # how many of the organs, from the first, a task asks for
# task -> {modality: organs}
TASKS = {
    1: {"CT": LIVER, "MR": LIVER},
    2: {"CT": LIVER},
    3: {"MR": LIVER},
    4: {"CT": LIVER, "MR": ALL},
    5: {"MR": ALL},
}
# heading -> metric, in the order of the paper's columns
COLUMNS = {
    "Mean score": "score",
    "DICE": "dice",
    "DICE score": "score_dice",
    "RAVD (%)": "ravd",
    "RAVD score": "score_ravd",
    "ASSD (mm)": "assd_mm",
    "ASSD score": "score_assd",
    "MSSD (mm)": "mssd_mm",
    "MSSD score": "score_mssd",
}
NOTES = (
    "Each cell is mean ± standard deviation (n − 1) over the cases of a task. A case's value is "
    "the mean over the organs that the task asks for, so a case counts once however many it has.",
    "Average: the mean of the tasks' means ± the mean of their standard deviations, as in the "
    "paper. Without all five tasks there is no average.",
)

Pair = tuple[float, float]  # mean, standard deviation


def tables(evaluated: Sequence[Evaluated], organs: Sequence[str], t1dual: str) -> list[Table]:
    """Table 4 as text and as numbers, and one row for each organ and kind of image."""
    results = results_of(evaluated, t1dual)
    return [
        *of_tasks({task: results for task in TASKS}, organs, t1dual),
        _shown("organs", "Each organ", "Organ, image", _organ_lines(evaluated, organs), ()),
    ]


def of_tasks(
    results: Mapping[int, Sequence[Evaluated]], organs: Sequence[str], t1dual: str
) -> list[Table]:
    """Table 4 as text and as numbers, from the results of each task."""
    found = {
        task: [
            row
            for case in results.get(task, ())
            if (row := case_row(case, task, organs)) is not None
        ]
        for task in TASKS
    }
    lines: list[tuple[str, int | None, list[Pair]]] = []
    for task, rows in found.items():
        pairs = [_pair([row[metric] for row in rows]) for metric in COLUMNS.values()]
        lines.append((f"Task {task}", len(rows), pairs))
    if all(found.values()):
        everything = np.array([pairs for _, _, pairs in lines])  # (task, column, 2)
        total = [tuple(map(float, pair)) for pair in everything.mean(axis=0)]
        lines.append(("Average", None, total))
    kind = f"T1DUAL is judged by {t1dual}; T1DUAL and T2SPIR are separate results."
    return [
        _shown("tasks", "CHAOS tasks (Table 4)", "Task", lines, (*NOTES, kind)),
        _values("tasks_values", lines),
    ]


def results_of(evaluated: Sequence[Evaluated], t1dual: str) -> list[Evaluated]:
    """Cases that are results: of T1DUAL one phase, the other only where a patient lacks it."""
    there = {case.files.patient for case in evaluated if layouts.phase(case.files.id) == t1dual}
    return [
        case
        for case in evaluated
        if layouts.phase(case.files.id) in ("", t1dual) or case.files.patient not in there
    ]


def case_row(case: Evaluated, task: int, organs: Sequence[str]) -> dict[str, float] | None:
    """Metrics of a case as means over the organs of a task; None if it is none of its cases."""
    wanted = organs[: TASKS[task].get(layouts.KINDS.get(case.files.kind, ""), 0)]
    row = {}
    for metric in COLUMNS.values():
        values = [case.row[f"{metric}_{organ}"] for organ in wanted]
        values = [value for value in values if not math.isnan(value)]
        if not values:
            return None
        row[metric] = sum(values) / len(values)
    return row


def _organ_lines(
    evaluated: Sequence[Evaluated], organs: Sequence[str]
) -> list[tuple[str, int, list[Pair]]]:
    groups: dict[str, list[Mapping[str, float]]] = {}
    for case in evaluated:
        name = f"{case.files.kind} {layouts.phase(case.files.id)}".strip()
        groups.setdefault(name, []).append(case.row)
    lines = []
    for organ in organs:
        for group, rows in groups.items():
            known = [row for row in rows if not math.isnan(row[f"dice_{organ}"])]
            pairs = [_pair([row[f"{m}_{organ}"] for row in known]) for m in COLUMNS.values()]
            if known:
                lines.append((f"{organ}, {group}", len(known), pairs))
    return lines


def _pair(values: Sequence[float]) -> Pair:
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _shown(name, title, first, lines, notes) -> Table:
    def cell(heading: str, pair: Pair) -> str | None:
        mean, deviation = pair
        if math.isnan(mean):
            return None
        digits = 3 if heading == "DICE" else 2
        text = f"{mean:.{digits}f}"
        return text if math.isnan(deviation) else f"{text} ± {deviation:.{digits}f}"

    rows = [
        (line, n, *(cell(heading, pair) for heading, pair in zip(COLUMNS, pairs, strict=True)))
        for line, n, pairs in lines
    ]
    return Table(name, title, (first, "n", *COLUMNS), tuple(rows), tuple(notes))


def _values(name: str, lines) -> Table:
    """Table of the same as numbers, for programs; not shown."""
    columns = [f"{metric}_{what}" for metric in COLUMNS.values() for what in ("mean", "sd")]
    rows = [(line, n, *(value for pair in pairs for value in pair)) for line, n, pairs in lines]
    return Table(name, "The tasks as numbers", ("task", "n", *columns), tuple(rows), shown=False)
