"""One self-contained, offline HTML page per run: no script, no external file, no network.

A part that is missing never stops the page: it says what is missing and which command makes it.
"""

import base64
import contextlib
import datetime
import html
import importlib.metadata
import json
import logging
import platform
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.challenges import CaseFiles, Challenge, Evaluated
from crossdim_jax.errors import DataError
from crossdim_jax.files import duration, write_text
from crossdim_jax.metric_writer import FILE as METRICS
from crossdim_jax.report import figures, tables
from crossdim_jax.report.run_folder import mean_dice, read_cases, read_json, read_metrics, select
from crossdim_jax.run_folder import CONFIG, EVALUATION, PREDICTIONS

logger = logging.getLogger(__name__)

SUMMARY, CASES = f"{EVALUATION}/summary.json", f"{EVALUATION}/cases.csv"

PACKAGES = ("crossdim_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
PACKAGES += ("numpy", "scipy", "nibabel", "matplotlib")
CSS = """
:root { color-scheme: light; --line: #d9dde2; --soft: #f5f6f8; --grey: #5a6270; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1b1f24; line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 62rem; margin: 0 auto; padding: 0 1.2rem; }
header { padding-top: 2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li, dd { overflow-wrap: anywhere; }
.sub, figcaption, footer { color: var(--grey); font-size: .87rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem;
  padding: 0; margin: 1rem 0; list-style: none; }
.cards li { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.cards b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.cards span { color: var(--grey); font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: .6rem 0; }
dt { color: var(--grey); } dd { margin: 0; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr));
  gap: 1.2rem 2rem; align-items: start; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; }
th:first-child { text-align: left; font-weight: normal; }
thead th, thead th:first-child { font-weight: 600; }
thead tr { border-top: 2px solid #1b1f24; border-bottom: 1px solid #1b1f24; }
tbody tr:last-child { border-bottom: 2px solid #1b1f24; }
caption { text-align: left; font-size: .85rem; color: var(--grey); padding-bottom: .3rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; }
.warn { border-left: 4px solid #c77700; background: #fff6e6; padding: .6rem .9rem; margin: 1rem 0; }
.warn p { margin: 0; } .warn ul { margin: .3rem 0 0; padding-left: 1.2rem; }
details { margin: 1rem 0; } summary { cursor: pointer; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .82rem; }
code { font-size: .92em; background: var(--soft); padding: .05em .25em; overflow-wrap: anywhere; }
footer { padding: 2rem 1.2rem; }
@media screen and (max-width: 44rem) { figure img { max-width: none; width: 42rem; } }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { @page { margin: 15mm; } body { font-size: 10pt; } header, main { padding: 0; }
  figure, table, .cards, .warn { break-inside: avoid; } h2, h3 { break-after: avoid; } }
"""


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
        section("Summary", run.summary_section),
        section("Scores", run.scores_section),
        section("Training", run.training_section),
        section("Cases", run.cases_section),
        section("Configuration", run.config_section),
    ]
    text = document(f"{challenge.name}: {workdir.resolve().name}", sections)
    path = workdir / "report.html"
    try:
        write_text(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot write the report: {error.strerror or error}") from error
    return path


def document(title: str, sections: Sequence[str]) -> str:
    """The whole page."""
    title = html.escape(title)
    now = datetime.datetime.now().astimezone()
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f'<header>\n<h1>{title}</h1>\n<p class="sub">{now:%d %B %Y, %H:%M %Z}</p>\n</header>\n'
        f"<main>\n{''.join(sections)}</main>\n"
        "<footer>Written by crossdim_jax. Not for clinical use.</footer>\n</body>\n</html>\n"
    )


class _Run:
    """What is known of one run folder, and the sections made of it."""

    def __init__(
        self,
        workdir: Path,
        challenge: Challenge,
        files: Sequence[CaseFiles],
        config: Mapping[str, Any] | None,
    ):
        self.workdir, self.challenge = workdir, challenge
        self.files = {case.id: case for case in files}
        self.config = config or read_json(workdir / CONFIG) or {}
        self.train, self.validation, self.unread = read_metrics(workdir / METRICS)
        self.summary = read_json(workdir / SUMMARY)
        self.rows = read_cases(workdir / CASES)
        self.regions = challenge.regions

    def summary_section(self) -> str:
        cards, facts = [], []
        if self.summary:
            for metric in list(self.summary["definitions"])[:2]:
                for region in self.summary["regions"]:
                    mean = self.summary["statistics"].get(f"{metric}_{region}", {}).get("mean")
                    name = f"{region}, mean {tables.heading(metric)}"
                    cards.append((tables.cell(mean, metric), name))
            cards = [card for card in cards if card[0] != tables.MISSING]
            facts.append(("Cases evaluated", str(self.summary["n_cases"])))
        if model := self.config.get("model"):
            facts.insert(0, ("Network", str(_get(model, "name") or model)))
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
        out = ""
        if cards:
            items = (f"<li><b>{_e(v)}</b><span>{_e(n)}</span></li>" for v, n in cards)
            out += f'<ul class="cards">{"".join(items)}</ul>\n'
        for text, cases in tables.problems(self.summary) if self.summary else []:
            out += _warning(text + ":", [f"{case}: {note}" for case, note in cases])
        return out + _facts([("Challenge", self.challenge.name), *facts])

    def scores_section(self) -> str:
        if not self.summary:
            return self._missing(SUMMARY, "evaluate")
        metrics = self.summary["definitions"]
        found = (scrolled(tables.to_html(tables.grid(self.summary, m))) for m in metrics)
        out = f'<div class="tables">\n{"".join(found)}</div>\n{_facts(tables.facts(self.summary))}'
        for table in self.summary.get("tables", []):
            if table["shown"]:
                notes = "".join(f"<li>{_e(note)}</li>" for note in table["notes"])
                out += f"<h3>{_e(table['title'])}</h3>\n" + scrolled(
                    tables.to_html(tables.plain(table))
                )
                out += f'<ul class="sub">{notes}</ul>\n' if notes else ""
        for group, part in self.summary.get("groups", {}).items():
            found = (scrolled(tables.to_html(tables.grid(self.summary, m, group))) for m in metrics)
            out += (
                f"<details><summary>{_e(group)}: {part['n_cases']} cases</summary>"
                f'<div class="tables">\n{"".join(found)}</div></details>\n'
            )
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

    def training_section(self) -> str:
        if not self.train and not self.validation:
            folds = sorted(self.workdir.glob("fold_*/report.html"))
            if folds:
                names = "".join(f"<li>{_e(p.relative_to(self.workdir))}</li>" for p in folds)
                return f"<p>Each fold has a report of its own:</p><ul>{names}</ul>\n"
            return self._missing(METRICS, "train")
        figure = figures.curves(self.train, self.validation, self.challenge.foreground)
        path = figures.save(figure, self.workdir / "figures" / "curves.png")
        out = _figure(
            path,
            "Training loss, learning rate and Dice over the epochs.",
            "Loss, learning rate, and Dice of what the network predicts, in training (grey; "
            "the darker line is a moving average) and on the validation cases (black, circles).",
        )
        if self.files and not self.validation:
            out += _warning("There is no validation yet.")
        if self.unread:
            out += _warning(f"{self.unread} lines of {METRICS} could not be read.")
        return out

    def cases_section(self) -> str:
        if not self.rows:
            return self._missing(CASES, "evaluate")
        subjects, lost = [], []
        for label, row in select(self.rows, self.regions):
            try:
                subjects.append(self._subject(label, row))
            except Exception as error:  # the other cases can still be shown
                logger.error("%s: not in the report", row["id"], exc_info=error)
                lost.append(f"{label}, {row['id']}: {type(error).__name__}: {error}")
        out = _warning("These cases cannot be shown:", lost) if lost else ""
        if not subjects:
            return out
        folder = self.workdir / "figures"
        regions = ", ".join(self.regions)
        path = figures.save(figures.panel(subjects), folder / "panel.png")
        out += _figure(
            path,
            "Chosen cases: two modalities, truth and prediction overlaid.",
            f"Cases by rank of their mean Dice over {regions} among {len(self.rows)} cases. "
            + ("Axial slices" if subjects[0].oriented else "Frames")
            + " where the truth is largest; "
            + ("the patient's right is on the left; " if subjects[0].oriented else "")
            + "grey values from the 1st to the 99th percentile of non-zero voxels.",
        )
        with figures.styled():
            further = self.challenge.figures(self._evaluated())
        for name, figure, caption in further:
            out += _figure(figures.save(figure, folder / f"{name}.png"), caption, caption)
        for subject in subjects:
            if not subject.oriented or min(subject.image.shape[:3]) < 2:
                continue
            end = next((name for name in ("Best", "Worst") if name in subject.title), None)
            if end is None:
                continue
            stem = f"views_{end.lower()}"
            path = figures.save(figures.views(subject), folder / f"{stem}.png")
            title = " ".join(subject.title.split("\n"))
            caption = subject.caption.replace("\n", ", ")
            out += f"<h3>{_e(title)}</h3>\n" + _figure(
                path,
                f"Axial, sagittal and coronal slices of {caption}",
                f"{caption}. Each view where the true outer region is largest.",
            )
        return out

    def _evaluated(self) -> list[Evaluated]:
        """The scored cases whose files are still there."""
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
        except DataError as error:
            why = str(error)
        keep = list(figures.pick_modalities(self.challenge.modalities))
        scores = [f"{r} {tables.cell(row.get(f'dice_{r}'), 'dice')}" for r in self.regions]
        return figures.Subject(
            title=label,
            caption="\n".join([textwrap.fill(row["id"], 24), "Dice (%)", *scores]),
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
        written_with = f'<p class="sub">Report written with {_e(", ".join(versions))}.</p>\n'
        if not self.config:
            return self._missing(CONFIG, "train") + written_with
        text = json.dumps(_plain(self.config), indent=2, default=str, ensure_ascii=False)
        fields = f"<details><summary>All fields</summary><pre>{_e(text)}</pre></details>\n"
        return fields + written_with

    def _missing(self, what: str, mode: str) -> str:
        if mode == "evaluate" and not self.files:
            return "<p>No case was held out, so there is nothing to evaluate.</p>\n"
        command = f"python launch.py --config=CONFIG --workdir={self.workdir} --mode={mode}"
        return (
            f'<div class="warn"><p>Not here yet: {_e(what)}. Made by <code>{_e(command)}</code>'
            "</p></div>\n"
        )


def section(title: str, make: Callable[[], str]) -> str:
    """A part of a page; one that fails says so in its place."""
    try:
        body = make()
    except Exception as error:  # a page without one part is worth more than no page
        logger.error("report: %s failed", title, exc_info=error)
        body = _warning(f"This part could not be made: {type(error).__name__}: {error}")
    name = title.lower()
    return f'<section aria-labelledby="{name}">\n<h2 id="{name}">{title}</h2>\n{body}</section>\n'


def _figure(path: Path, alt: str, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><div class="scroll"><img alt="{_e(alt)}" '
        f'src="data:image/png;base64,{data}"></div>\n'
        f"<figcaption>{_e(caption)}</figcaption></figure>\n"
    )


def _warning(text: str, items: Sequence[str] = ()) -> str:
    bullets = "".join(f"<li>{_e(item)}</li>" for item in items)
    bullets = f"<ul>{bullets}</ul>" if bullets else ""
    return f'<div class="warn"><p>{_e(text)}</p>{bullets}</div>\n'


def _facts(pairs: Sequence[tuple[str, str]]) -> str:
    items = "".join(f"<dt>{_e(name)}</dt><dd>{_e(text)}</dd>\n" for name, text in pairs)
    return f"<dl>\n{items}</dl>\n"


def listed(items: Sequence[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{_e(item)}</li>' for item in items)}</ul>\n"


def scrolled(table: str) -> str:
    """A table that may be wider than the page."""
    return f'<div class="scroll">{table}</div>\n'


def _column_title(column: str) -> str:
    metric, _, region = column.rpartition("_")
    return f"{tables.heading(metric)} {region}"


def _get(value: Any, key: str) -> Any:
    return value.get(key) if hasattr(value, "get") else None


def _plain(value: Any) -> Any:
    """Mappings of any kind as dicts with text keys, so that JSON takes them."""
    if isinstance(value, Mapping) or hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _e(text: Any) -> str:
    return html.escape(str(text))
