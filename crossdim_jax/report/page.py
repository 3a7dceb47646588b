"""HTML page of a run, see `elements`.

A part that is missing never stops the page: it says what is missing and which command makes it.
"""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from crossdim_jax.challenges.base import Challenge, Evaluated
from crossdim_jax.errors import DataError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.report import elements, figures, origin, tables, viewer
from crossdim_jax.report.elements import escape, scrolled, warning
from crossdim_jax.report.reading import (
    CASES,
    SUMMARY,
    mean_dice,
    read_cases,
    read_metrics,
    read_summary,
    select,
)
from crossdim_jax.storage.files import duration, write_text, writing
from crossdim_jax.storage.records import read_record
from crossdim_jax.storage.run_folder import (
    CONFIG,
    METRICS,
    PREDICTIONS,
    RUN,
    WEIGHTS,
    read_config,
    read_cost,
)
from crossdim_jax.text import shown, without_folders, without_paths

logger = logging.getLogger(__name__)

PACKAGES = ("crossdim_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PACKAGES += ("numpy", "scipy", "nibabel", "matplotlib")


def write(
    workdir: str | Path,
    challenge: Challenge,
    files: Sequence[CaseFiles],
    *,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Writes `workdir/report.html` and `workdir/figures/`; returns the page's path.

    Reads metrics.jsonl, evaluation/ and predictions/ of the run folder, each only if present, and
    config.json unless `config` is given. Runs no network: of several processes one suffices.

    files: the evaluated cases, with labels; empty if none was held out.

    Raises DataError if the page itself cannot be written.
    """
    workdir = Path(workdir)
    run = _Run(workdir, challenge, files, config)
    sections = [
        elements.section("Summary", run.summary_section),
        elements.section("Scores", run.scores_section),
        elements.section("Training", run.training_section),
        elements.section("Cases", run.cases_section),
        elements.section("Configuration", run.config_section),
    ]
    text = elements.document(f"{challenge.name}: {workdir.resolve().name}", sections)
    path = workdir / "report.html"
    with writing(path, "the report"):
        write_text(path, text)
    return path


class _Run:
    """Content of one run folder, and the sections of its page."""

    def __init__(
        self,
        workdir: Path,
        challenge: Challenge,
        files: Sequence[CaseFiles],
        config: Mapping[str, Any] | None,
    ):
        self.workdir, self.challenge = workdir, challenge
        self.files = {case.id: case for case in files}
        self.damaged: dict[str, str] = {}  # what is there and cannot be used, and why
        self.config = config or self._read(CONFIG, lambda _: read_config(workdir), {})
        self.train, self.validation, self.unread = self._read(METRICS, read_metrics, ([], [], 0))
        self.summary = self._read(SUMMARY, read_summary, {})
        self.rows = self._read(CASES, read_cases, [])
        self.regions = challenge.regions

    def _read(self, name: str, read: Callable[[Path], Any], without: Any) -> Any:
        """Part of the run; `without` if it is absent or, noted in `damaged`, of no use."""
        path = self.workdir / name
        if not os.path.lexists(path):
            return without
        try:
            return read(path)
        except DataError as error:
            logger.warning("left out of the report: %s", shown(str(error)))
            self.damaged[name] = str(error)
            return without

    def summary_section(self) -> str:
        facts = [("Challenge", self.challenge.name)]
        if model := self.config.get("model"):
            facts.append(("Network", str(_get(model, "name") or model)))
        if self.summary:
            facts.append(("Cases evaluated", str(self.summary["n_cases"])))
        facts += origin.facts(self._read(WEIGHTS, _weights_record, {}))
        facts += self._training_facts()
        out = ""
        if cards := self._cards():
            items = (f"<li><b>{escape(v)}</b><span>{escape(n)}</span></li>" for v, n in cards)
            out += f'<ul class="cards">{"".join(items)}</ul>\n'
        for text, cases in tables.problems(self.summary) if self.summary else []:
            out += warning(text + ":", [f"{case}: {note}" for case, note in cases])
        return out + elements.facts(facts)

    def _cards(self) -> list[tuple[str, str]]:
        """Means of the first two metrics, (value, name)."""
        cards = []
        for metric in list(self.summary.get("definitions", ()))[:2]:
            for region in self.summary["regions"]:
                mean = self.summary["statistics"].get(f"{metric}_{region}", {}).get("mean")
                name = f"{region}, mean {tables.heading(metric)}"
                cards.append((tables.cell(mean, metric), name))
        return [card for card in cards if card[0] != tables.MISSING]

    def _training_facts(self) -> list[tuple[str, str]]:
        facts = []
        if cases := self._read(RUN, lambda _: read_cost(self.workdir), {}).get("training_cases"):
            facts.append(("Training cases", cases))
        if self.train:
            last = self.train[-1]
            facts.append(("Training", f"{last['epoch']:.4g} epochs, {last['step']:,} steps"))
            if seconds := last.get("seconds"):
                facts.append(("Training time", duration(seconds)))
            speeds = [row["images_per_s"] for row in self.train if row.get("images_per_s")]
            if speeds:
                facts.append(("Speed", f"{np.median(speeds):.3g} images/s (median)"))
        scored = [row for row in self.validation if row.get("dice") is not None]
        if scored:
            best = max(scored, key=lambda row: row["dice"])
            text = f"{100 * best['dice']:.2f} % (mean over regions), epoch {best['epoch']:.4g}"
            facts.append(("Best validation Dice", text))
        return facts

    def scores_section(self) -> str:
        if not self.summary:
            return self._missing(SUMMARY, "evaluate")
        out = self._grids() + "\n" + elements.facts(tables.facts(self.summary))
        for table in self.summary.get("tables", []):
            if table["shown"]:
                notes = "".join(f"<li>{escape(note)}</li>" for note in table["notes"])
                out += f"<h3>{escape(table['title'])}</h3>\n" + scrolled(
                    tables.to_html(tables.plain(table))
                )
                out += f'<ul class="sub">{notes}</ul>\n' if notes else ""
        for group, part in self.summary.get("groups", {}).items():
            title = f"{escape(group)}: {part['n_cases']} cases"
            out += f"<details><summary>{title}</summary>{self._grids(group)}</details>\n"
        if not self.rows:
            return out + self._missing(CASES, "evaluate")
        columns = [c for c in self.rows[0] if c not in ("id", "note")]
        head = ["Case", *(_column_title(c) for c in columns)]
        body = [
            [row["id"], *(tables.cell(row[c], c.rsplit("_", 1)[0]) for c in columns)]
            for row in sorted(self.rows, key=lambda row: mean_dice(row, self.regions))
        ]
        table = scrolled(tables.to_html([head, *body], caption="Lowest mean Dice first."))
        return out + f"<details><summary>All {len(body)} cases</summary>{table}</details>\n"

    def _grids(self, group: str | None = None) -> str:
        """Tables of all metrics, over all cases or over those of a group."""
        grids = (tables.grid(self.summary, m, group) for m in self.summary["definitions"])
        text = "".join(scrolled(tables.to_html(grid)) for grid in grids)
        return f'<div class="tables">\n{text}</div>'

    def training_section(self) -> str:
        if not self.train and not self.validation:
            folds = sorted(self.workdir.glob("fold_*/report.html"))
            if folds:
                names = "".join(f"<li>{escape(p.relative_to(self.workdir))}</li>" for p in folds)
                return f"<p>Each fold has a report of its own:</p><ul>{names}</ul>\n"
            return self._missing(METRICS, "train")
        figure = figures.curves(self.train, self.validation, self.challenge.foreground)
        path = figures.save(figure, self.workdir / "figures" / "curves.png")
        out = elements.figure(
            path,
            "Training loss, learning rate and Dice over the epochs.",
            "Loss, learning rate, and Dice of what the network predicts, in training (grey; "
            "the darker line is a moving average) and on the validation cases (black, circles).",
        )
        if self.files and not self.validation:
            out += warning("There is no validation yet.")
        if self.unread:
            out += warning(f"{self.unread} lines of {METRICS} could not be read.")
        return out

    def cases_section(self) -> str:
        if not self.rows:
            return self._missing(CASES, "evaluate")
        subjects, lost = [], []
        for label, row in select(self.rows, self.regions):
            try:
                subject = self._subject(label, row)
                figures.panel([subject])  # what cannot be drawn must not take the others along
                subjects.append(subject)
            except Exception as error:
                expected = isinstance(error, DataError)
                logger.error(
                    "%s: not in the report: %s",
                    *(shown(row["id"]), shown(str(error))),
                    exc_info=None if expected else error,
                )
                lost.append(f"{_one(label)}, {row['id']}: {self._reason(error, row['id'])}")
        out = warning("These cases cannot be shown:", lost) if lost else ""
        if not subjects:
            return out
        folder = self.workdir / "figures"
        regions = ", ".join(self.regions)
        path = figures.save(figures.panel(subjects), folder / "panel.png")
        out += elements.figure(
            path,
            "Chosen cases: two modalities, truth and prediction overlaid.",
            f"Cases by rank of their mean Dice over {regions} among {len(self.rows)} cases. "
            + ("Axial slices" if subjects[0].oriented else "Frames")
            + " where the truth is largest; "
            + ("the patient's right is on the left; " if subjects[0].oriented else "")
            + "grey values from the 1st to the 99th percentile of non-zero voxels.",
        )
        out += self._viewers() + self._further(folder)
        return out + "".join(self._views(subject, folder) for subject in subjects)

    def _views(self, subject: figures.Subject, folder: Path) -> str:
        """Figure of the best or the worst case in three views; "" for others."""
        end = next((name for name in ("Best", "Worst") if name in subject.title), None)
        if end is None or not subject.oriented or min(subject.image.shape[:3]) < 2:
            return ""
        path = figures.save(figures.views(subject), folder / f"views_{end.lower()}.png")
        caption = subject.caption.replace("\n", ", ")
        return f"<h3>{escape(_one(subject.title))}</h3>\n" + elements.figure(
            path,
            f"Axial, sagittal and coronal slices of {caption}",
            f"{caption}. Each view where the true outer region is largest.",
        )

    def _viewers(self) -> str:
        """Links to the viewer pages of the cases, or the command that writes them."""
        pages = [row["id"] for row in self.rows if viewer.path(self.workdir, row["id"]).exists()]
        if not pages:
            command = self._command("view")
            return f"<p>To scroll through the cases in the browser: <code>{command}</code></p>\n"
        links = (
            f'<a href="{quote(viewer.path(Path(), case).as_posix())}">{escape(case)}</a>'
            for case in pages
        )
        return f"<p>Scroll through a case: {', '.join(links)}</p>\n"

    def _further(self, folder: Path) -> str:
        """Figures of the challenge's own, of the cases that can be read if not of all."""
        cases, out = self._evaluated(), ""
        for _ in range(2):
            try:
                with figures.styled():
                    further = self.challenge.figures(cases)
                break
            except Exception as error:  # the rest of the page stands without them
                lost = {case.files.id: why for case in cases if (why := self._unreadable(case))}
                logger.error("report: the challenge's figures failed", exc_info=error)
                told = [f"{name}: {why}" for name, why in lost.items()] or [elements.reason(error)]
                out += warning("The challenge's figures lack these cases:", told)
                further, cases = [], [case for case in cases if case.files.id not in lost]
                if not lost:
                    break
        for name, figure, caption in further:
            out += elements.figure(figures.save(figure, folder / f"{name}.png"), caption, caption)
        return out

    def _unreadable(self, case: Evaluated) -> str:
        """Reason why a case or its prediction cannot be read; "" if both can."""
        try:
            self.challenge.load(case.files)
            self.challenge.read_prediction(case.prediction)
        except Exception as error:
            return self._reason(error, case.files.id)
        return ""

    def _reason(self, error: Exception, case_id: str) -> str:
        files = self.files.get(case_id)
        own = [path for path in (*files.images, files.label) if path] if files else []
        return elements.reason(error, [*own, self.workdir / "any"])

    def _evaluated(self) -> list[Evaluated]:
        """Scored cases whose files are still there."""
        folder = self.workdir / PREDICTIONS
        return [
            Evaluated(
                self.files[row["id"]],
                {name: value for name, value in row.items() if name not in ("id", "note")},
                self.challenge.prediction_path(folder, row["id"]),
                row["note"],
            )
            for row in self.rows
            if row["id"] in self.files
        ]

    def _subject(self, label: str, row: Mapping[str, Any]) -> figures.Subject:
        files = self.files.get(row["id"])
        if files is None:
            raise DataError("its images are not among the cases of this run's data")
        case = self.challenge.load(files)
        prediction, why = None, ""
        try:
            path = self.challenge.prediction_path(self.workdir / PREDICTIONS, row["id"])
            labels, _ = self.challenge.read_prediction(path)
            if row["note"] or labels.shape != case.label.shape:
                raise DataError("the prediction is not on the image's grid")
            prediction = self.challenge.layers(labels)
        except Exception as error:  # truth and image can still be shown
            why = self._reason(error, row["id"]).removeprefix("DataError: ")
        keep = list(figures.pick_modalities(self.challenge.modalities))
        scores = [f"{r} {tables.cell(row.get(f'dice_{r}'), 'dice')}" for r in self.regions]
        return figures.Subject(
            title=label,
            caption="\n".join([_short_id(row["id"]), "Dice (%)", *scores]),
            image=case.image[..., keep],
            modalities=[self.challenge.modalities[i] for i in keep],
            truth=self.challenge.layers(case.label),
            prediction=prediction,
            spacing_mm=case.spacing_mm,
            why=why,
            outline=self.challenge.outline,
            oriented=case.geometry.oriented,
        )

    def config_section(self) -> str:
        versions = [f"Python {platform.python_version()}"]
        for name in PACKAGES:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{name} {importlib.metadata.version(name)}")
        written_with = f'<p class="sub">Report written with {escape(", ".join(versions))}.</p>\n'
        if not self.config:
            return self._missing(CONFIG, "train") + written_with
        config = without_paths(self.config, [self.workdir / "any"])  # pages are passed on
        text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
        fields = f"<details><summary>All fields</summary><pre>{escape(text)}</pre></details>\n"
        return fields + written_with

    def _missing(self, what: str, mode: str) -> str:
        if what in self.damaged:
            return warning(without_folders(self.damaged[what], [self.workdir / "any"]) + ".")
        if mode == "evaluate" and not self.files:
            return "<p>No case was held out, so there is nothing to evaluate.</p>\n"
        return (
            f'<div class="warn"><p>Not here yet: {escape(what)}. Made by '
            f"<code>{self._command(mode)}</code></p></div>\n"
        )

    def _command(self, mode: str) -> str:
        return escape(
            f"python launch.py --config=CONFIG --workdir={_folder(self.workdir)} --mode={mode}"
        )


def _weights_record(path: Path) -> dict[str, Any]:
    return read_record(path, remedy="it is written once, at the first start of a training")


def _folder(workdir: Path) -> str:
    """Run folder as a page names it: pages are passed on, and need not say where it lies."""
    return f".../{workdir.resolve().name}"


def _column_title(column: str) -> str:
    metric, _, region = column.rpartition("_")
    return f"{tables.heading(metric)} {region}"


def _get(value: Any, key: str) -> Any:
    return value.get(key) if hasattr(value, "get") else None


def _one(label: str) -> str:
    return " ".join(label.split("\n"))


def _short_id(case_id: str) -> str:
    """Name of a case in lines of a figure, however long it is."""
    return textwrap.fill(textwrap.shorten(shown(case_id), 96, placeholder=" ..."), 24)
