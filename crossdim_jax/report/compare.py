"""Comparison of runs: one page and one table, as Tables 5 and 6 of the paper side by side.

Reads what the run folders hold, and needs neither config nor network. A part that a run does not
have yet is a dash.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crossdim_jax.errors import ConfigError
from crossdim_jax.report import elements, tables
from crossdim_jax.report.reading import SUMMARY
from crossdim_jax.report.run_summary import CONDITIONS, FACTS, Run
from crossdim_jax.storage.files import write_text, writing
from crossdim_jax.storage.plain import csv_text

PAGE, TABLE, CSV = "comparison.html", "comparison.md", "comparison.csv"
SHOWN = ("mean", "median", "q25", "q75")


def write(workdirs: Sequence[str | os.PathLike], output: str | os.PathLike = "") -> Path:
    """Writes `comparison.html`, `.md` and `.csv`; returns the page's path.

    Args:
      workdirs: run folders, two or more; their order is that of the columns.
      output: a folder, made if there is none; "" for the one that holds the first run.

    Raises:
      ConfigError: fewer than two folders, or the same twice.
      DataError: a folder is not of a run, or nothing can be written.
    """
    folders = [Path(folder) for folder in workdirs]
    if len({folder.resolve() for folder in folders}) < max(len(folders), 2):
        raise ConfigError(
            f"--workdir={','.join(map(str, workdirs))}: a comparison needs two run folders or "
            "more, each once, separated by commas"
        )
    runs = [Run(folder) for folder in folders]
    names = _names(runs)
    facts = [["", *names], *_facts(runs)]
    metrics = list(dict.fromkeys(m for run in runs for m in run.definitions))
    scores = [(metric, _scores(runs, names, metric)) for metric in metrics]
    folder = Path(output) if str(output) else folders[0].resolve().parent
    with writing(folder, "the comparison"):
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CSV, csv_text(_csv(runs, names, metrics)))
        write_text(folder / TABLE, _markdown(facts, scores, _notes(runs, names)))
        write_text(folder / PAGE, _html(names, facts, scores, _notes(runs, names)))
    return folder / PAGE


def _names(runs: Sequence[Run]) -> list[str]:
    """Names of the folders, or paths below their common folder where names are the same."""
    folders = [run.folder.resolve() for run in runs]
    short = [folder.name for folder in folders]
    if len(set(short)) == len(short):
        return short
    above = os.path.commonpath([folder.parent for folder in folders])
    return [str(folder.relative_to(above)) for folder in folders]


def _facts(runs: Sequence[Run]) -> list[list[str]]:
    """Facts and costs of the runs: rows of text, a column for each run."""

    def row(title, values, text):
        return [title, *(tables.MISSING if value is None else text(value) for value in values)]

    rows = [row(title, map(value, runs), text) for title, value, text in FACTS.values()]
    for name in _provenance(runs):
        rows.append(row(tables.words(name), (run.provenance.get(name) for run in runs), str))
    return rows


def _provenance(runs: Sequence[Run]) -> list[str]:
    """Names of the settings that predictions were made with; but for the patch, shown above."""
    return [n for n in dict.fromkeys(n for run in runs for n in run.provenance) if n != "patch"]


def _csv(runs: Sequence[Run], names: Sequence[str], metrics: Sequence[str]) -> list[list[Any]]:
    """Rows of the CSV: every number unrounded, a line each."""
    rows: list[list[Any]] = [["run", "metric", "region", "statistic", "value"]]
    for run, name in zip(runs, names, strict=True):
        facts = {key: value(run) for key, (_, value, _) in FACTS.items()}
        facts |= {key: run.provenance.get(key) for key in _provenance(runs)}
        rows += [[name, key, "", "", value] for key, value in facts.items() if value is not None]
        for metric in metrics:
            for region in run.regions:
                for kind in SHOWN:
                    value = run.statistic(metric, region, kind)
                    if value is not None:
                        rows.append([name, metric, region, kind, value])
    return rows


def _scores(runs: Sequence[Run], names: Sequence[str], metric: str) -> list[list[str]]:
    """Table of one metric: mean, median and quartiles by region, a column for each run."""
    regions = list(dict.fromkeys(region for run in runs for region in run.regions))
    rows = [[tables.heading(metric), *names]]
    for region in regions:
        for kind in SHOWN:
            cells = (tables.cell(run.statistic(metric, region, kind), metric) for run in runs)
            rows.append([f"{region}, {tables.STATISTICS[kind].lower()}", *cells])
    return rows


def _notes(runs: Sequence[Run], names: Sequence[str]) -> list[str]:
    """Notes that a reader needs before comparing the columns."""
    notes = [
        "Training time per image is between two lines of the log, without validation and "
        "checkpoints. Peak memory is that of the device; on a CPU, that of the whole process, "
        "compiling included."
    ]
    scored = [run for run in runs if run.summary]
    for what, found in {
        "on different challenges": [r.summary.get("challenge") for r in scored],
        "with metrics of different definitions": [r.definitions for r in scored],
        "with statistics aggregated differently": [r.summary.get("aggregation") for r in scored],
        "on different numbers of cases": [r.summary.get("n_cases") for r in scored],
        "on different cases": [r.case_ids for r in scored],
    }.items():
        if _differ(found):
            notes.append(f"These runs were scored {what}: the columns do not compare.")
    if others := _other_truths(scored):
        notes.append(
            "These runs were scored on cases of the same names with different labels or sizes, "
            f"such as {', '.join(others[:3])}: the columns do not compare."
        )
    ways = [
        tables.words(name).lower()
        for name in _provenance(scored)
        if name != "checkpoint_step" and all(name in r.provenance for r in scored)
        if _differ([r.provenance[name] for r in scored])
    ]
    if ways:
        said = ", ".join(ways)
        notes.append(f"Predictions were made with different {said}: scores differ by that too.")
    conditions = (FACTS[name] for name in CONDITIONS)
    unequal = [title for title, value, _ in conditions if _differ([value(run) for run in runs])]
    if unequal:
        said = ", ".join(unequal).lower()
        notes.append(f"The trainings had different {said}: time and memory differ by that too.")
    for run, name in zip(runs, names, strict=True):
        notes += [f"{name}: {text}." for text, _ in tables.problems(run.summary)]
        notes += [f"{name}: {text}." for text in run.damaged]
        if not run.summary and not os.path.lexists(run.folder / SUMMARY):
            notes.append(f"{name} has not been evaluated yet (--mode=evaluate).")
    return notes


def _differ(found: Sequence[Any]) -> bool:
    return any(value != found[0] for value in found)


def _other_truths(runs: Sequence[Run]) -> list[str]:
    """Cases of one name whose labels differ between runs."""
    known: dict[str, str] = {}
    others = []
    for run in runs:
        for case, truth in run.summary.get("truths", {}).items():
            if known.setdefault(case, truth) != truth:
                others.append(case)
    return sorted(set(others))


def _markdown(facts, scores, notes) -> str:
    lines = ["# Runs side by side", "", *tables.markdown_table(facts)]
    for _, rows in scores:
        lines += tables.markdown_table(rows)
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def _html(names, facts, scores, notes) -> str:
    found = [elements.scrolled(tables.to_html(rows)) for _, rows in scores]
    sections = [
        elements.section("Runs", lambda: elements.scrolled(tables.to_html(facts))),
        elements.section("Scores", lambda: f'<div class="tables">\n{"".join(found)}</div>\n'),
        elements.section("Notes", lambda: elements.listed(notes)),
    ]
    return elements.document(" and ".join(names), sections)
