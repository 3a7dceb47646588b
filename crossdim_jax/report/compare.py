"""Several runs side by side: one page and one table, as Tables 5 and 6 of the paper stand together.

Reads what the run folders hold, and needs neither config nor network. A part that a run does not
have yet is a dash.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.files import duration, write_text
from crossdim_jax.metric_writer import FILE as METRICS
from crossdim_jax.plain import csv_text
from crossdim_jax.report import page, tables
from crossdim_jax.report.run_folder import read_json, read_metrics
from crossdim_jax.run_folder import CONFIG, RUN

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
    runs = [_Run(folder) for folder in folders]
    names = _names(runs)
    facts = [["", *names], *_facts(runs)]
    metrics = list(dict.fromkeys(m for run in runs for m in run.definitions))
    scores = [(metric, _scores(runs, names, metric)) for metric in metrics]
    folder = Path(output) if str(output) else folders[0].resolve().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / CSV, csv_text([*facts, *(row for _, rows in scores for row in rows)]))
        write_text(folder / TABLE, _markdown(facts, scores, _notes(runs, names)))
        write_text(folder / PAGE, _html(names, facts, scores, _notes(runs, names)))
    except OSError as error:
        raise DataError(f"{folder}: cannot write the comparison: {error.strerror}") from error
    return folder / PAGE


class _Run:
    """What is known of one run folder."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder, read_json(folder / CONFIG)
        if not self.config:
            raise DataError(
                f"{folder / CONFIG}: not found; a comparison is of run folders, such as "
                "--workdir=runs/dsnet,runs/dxnet"
            )
        self.summary: dict[str, Any] = read_json(folder / page.SUMMARY) or {}
        self.measured: dict[str, Any] = read_json(folder / RUN) or {}
        self.train, _, _ = read_metrics(folder / METRICS)
        self.definitions: dict[str, str] = self.summary.get("definitions", {})
        self.regions: list[str] = self.summary.get("regions", [])

    def statistic(self, metric: str, region: str, kind: str) -> str:
        """As printed."""
        found = self.summary.get("statistics", {}).get(f"{metric}_{region}", {})
        return tables.cell(found.get(kind), metric)


def _names(runs: Sequence[_Run]) -> list[str]:
    """The folders' names, or their paths where two are called the same."""
    short = [run.folder.resolve().name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]


def _facts(runs: Sequence[_Run]) -> list[list[str]]:
    """What the runs were and what they cost: rows of text, a column for each run."""

    def network(run):
        model = run.config.get("model", {})
        return " ".join(str(model[f]) for f in ("name", "variant", "encoder") if model.get(f))

    def speed(run):
        speeds = [row["images_per_s"] for row in run.train if row.get("images_per_s")]
        return f"{1 / np.median(speeds):.3g}" if speeds else tables.MISSING

    def of(run, name, form="{:,}"):
        value = run.measured.get(name)
        return tables.MISSING if value is None else form.format(value)

    def patch(run):
        return " x ".join(map(str, run.config.get("data", {}).get("patch", ()))) or tables.MISSING

    def last(run, name, form):
        value = run.train[-1].get(name) if run.train else None
        return tables.MISSING if value is None else form(value)

    rows = {
        "Network": network,
        "Parameters": lambda run: of(run, "parameters"),
        "Patch": patch,
        "Steps": lambda run: last(run, "step", "{:,}".format),
        "Training time": lambda run: last(run, "seconds", duration),
        "Training time per image (s, median)": speed,
        "Peak memory (MB)": lambda run: of(run, "peak_memory_mb", "{:,.0f}"),
        "Device": lambda run: of(run, "device", "{}"),
        "Cases evaluated": lambda run: str(run.summary.get("n_cases", tables.MISSING)),
    }
    return [[name, *map(make, runs)] for name, make in rows.items()]


def _scores(runs: Sequence[_Run], names: Sequence[str], metric: str) -> list[list[str]]:
    """One metric: mean, median and quartiles by region, a column for each run."""
    regions = list(dict.fromkeys(region for run in runs for region in run.regions))
    rows = [[tables.heading(metric), *names]]
    for region in regions:
        for kind in SHOWN:
            cells = (run.statistic(metric, region, kind) for run in runs)
            rows.append([f"{region}, {tables.STATISTICS[kind].lower()}", *cells])
    return rows


def _notes(runs: Sequence[_Run], names: Sequence[str]) -> list[str]:
    """What a reader must know before comparing the columns."""
    notes = [
        "Training time per image is between two lines of the log, without validation and "
        "checkpoints. Peak memory is that of the device; on a CPU, that of the whole process, "
        "compiling included."
    ]
    for field, what in {
        "challenge": "different challenges",
        "definitions": "metrics with different definitions",
        "aggregation": "statistics aggregated differently",
        "n_cases": "different numbers of cases",
    }.items():
        found = [run.summary.get(field) for run in runs if run.summary]
        if any(value != found[0] for value in found):
            notes.append(f"These runs were scored on or with {what}: the columns do not compare.")
    cases = [_case_ids(run) for run in runs if run.summary]
    if any(ids != cases[0] for ids in cases):
        notes.append("These runs were scored on different cases: the columns do not compare.")
    for run, name in zip(runs, names, strict=True):
        if not run.summary:
            notes.append(f"{name} has not been evaluated yet (--mode=evaluate).")
    return notes


def _case_ids(run: _Run) -> list[str]:
    return sorted(row["id"] for row in page.read_cases(run.folder / page.CASES))


def _markdown(facts, scores, notes) -> str:
    lines = ["# Runs side by side", "", *tables.markdown_table(facts)]
    for _, rows in scores:
        lines += tables.markdown_table(rows)
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def _html(names, facts, scores, notes) -> str:
    found = [page.scrolled(tables.to_html(rows)) for _, rows in scores]
    sections = [
        page.section("Runs", lambda: page.scrolled(tables.to_html(facts))),
        page.section("Scores", lambda: f'<div class="tables">\n{"".join(found)}</div>\n'),
        page.section("Notes", lambda: page.listed(notes)),
    ]
    return page.document(" and ".join(names), sections)
