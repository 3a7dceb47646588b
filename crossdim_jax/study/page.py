"""Page of a study: question, answer, figures, tables, protocol and cost; see `elements`."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax import metrics
from crossdim_jax.report import elements, tables
from crossdim_jax.report.elements import escape, scrolled, warning
from crossdim_jax.report.figures import save
from crossdim_jax.storage.files import duration, write_text, writing
from crossdim_jax.storage.plain import csv_text
from crossdim_jax.study import analysis as analysis_lib
from crossdim_jax.study import figures, statistics
from crossdim_jax.study.analysis import Analysis, Arm, Comparison, cases_text, number
from crossdim_jax.study.collect import Results
from crossdim_jax.study.grid import PlannedRun, Study
from crossdim_jax.text import without_paths

PAGE, RECORD, CSV = "study.html", "study.json", "study.csv"

METHODS = (
    "A difference is taken case by case and seed by seed: both arms of a pair had the same "
    "training cases and the same held-out case.",
    "The 95 % interval is for other seeds and other cases of the same kind: a two-way random-"
    "effects t interval over seeds and cases, with Satterthwaite's degrees of freedom. p is of the "
    "same distribution, and p (Holm) is adjusted for all comparisons on this page.",
    "p (permutation) flips the sign of each case's difference, for all seeds together: it is "
    "about these trained networks on other cases, and says nothing of other seeds.",
    "The bootstrap interval resamples seeds and cases, each by themselves. With few seeds it is "
    "too narrow where seeds differ and too wide where they do not: nothing is concluded from it.",
    f"With fewer than {statistics.FEW_SEEDS} seeds or {statistics.FEW_CASES} held-out cases an "
    "interval stands with a warning and is not concluded from. A star (*): p (Holm) is below 0.05.",
    "SD is between the means of the seeds. Steps are those after which the running mean of the "
    "training Dice, over a twentieth of the training, is first at the level given.",
)


def write(
    study_dir: str | Path, study: Study, protocol: Mapping[str, Any], results: Results
) -> Path:
    """Writes `study.html`, `study.json`, `study.csv` and figures/; returns the page's path.

    Args:
      study_dir: folder of the study.
      study: what was asked.
      protocol: as written before the first run, with "amendments" and "budget" if it has them.
      results: of the runs; those that are missing are named.

    Raises:
      ConfigError: the runs were not scored with the study's metric.
      DataError: a file cannot be written.
    """
    folder = Path(study_dir)
    page = _Page(folder, study, protocol, results)
    record = analysis_lib.plain(page.analysis)
    record |= {
        "question": study.question,
        "reference": study.reference,
        "methods": METHODS,
        "runs": [_run_record(found) for found in results.finished],
        "missing": [_planned(run) | {"why": why} for run, why in results.missing],
        "amendments": protocol.get("amendments", []),
    }
    rows = analysis_lib.csv_rows(record, results)
    sections = [
        elements.section("Answer", page.answer),
        elements.section("Differences", page.differences),
        elements.section("Scores", page.scores),
        elements.section("Learning", page.learning),
        elements.section("Classes", page.classes),
        elements.section("Cases", page.cases),
        elements.section("Protocol", page.protocol_section),
        elements.section("Cost", page.cost),
        elements.section("Methods", lambda: elements.listed(METHODS)),
    ]
    with writing(folder, "the study's page"):
        write_text(folder / RECORD, json.dumps(record, indent=2, allow_nan=False) + "\n")
        write_text(folder / CSV, csv_text(rows))
        write_text(folder / PAGE, elements.document(f"Study: {folder.resolve().name}", sections))
    return folder / PAGE


class _Page:
    """Sections of a study's page."""

    def __init__(self, folder: Path, study: Study, protocol: Mapping[str, Any], results: Results):
        self.folder, self.study, self.protocol, self.results = folder, study, protocol, results
        self.analysis: Analysis = analysis_lib.analyse(study, results)
        self.looks = figures.Looks([arm.name for arm in self.analysis.arms], study.reference)

    def answer(self) -> str:
        out = f"<p><b>{escape(self.study.question)}</b></p>\n"
        sentences = self.analysis.sentences()
        if len(self.results.cases()) > 1 and self.analysis.comparisons:
            out += elements.listed([*self.analysis.summaries(), sentences[-1]])
            each = elements.listed(sentences[:-1])
            out += f"<details><summary>Each comparison in a sentence</summary>{each}</details>\n"
        else:
            out += elements.listed(sentences)
        few = [c for c in self.analysis.comparisons if c.difference.few]
        if few:
            out += warning(
                f"{len(few)} of {len(self.analysis.comparisons)} comparisons have fewer than "
                f"{statistics.FEW_SEEDS} seeds or {statistics.FEW_CASES} held-out cases: their "
                "intervals are shown, and nothing is concluded from them."
            )
        if missing := self.results.missing:
            planned = len(missing) + len(self.results.finished)
            out += warning(
                f"{len(missing)} of {planned} runs are missing, and the numbers are without them:",
                [f"{_name(run)}: {why}" for run, why in missing],
            )
        if notes := self._notes():
            out += warning("About the runs:", notes)
        return out

    def _notes(self) -> list[str]:
        """Notes that a reader needs before comparing the arms."""
        notes = [f"{_name(f.run)}: {note}" for f in self.results.finished for note in f.notes]
        for found in self.results.finished:
            planned = (self.protocol.get("budget") or {}).get(found.run.arm, {}).get("steps")
            if planned and found.steps != planned:
                notes.append(f"{_name(found.run)}: {found.steps} of {planned} steps are logged")
            for text, _ in tables.problems(found.summary):
                notes.append(f"{_name(found.run)}: {text}")
        for over in ("seeds", "cases"):
            pairs = [c for c in self.analysis.comparisons if c.difference.over == over]
            if pairs:
                chance = {"seeds": "each seed counts once", "cases": "one seed"}[over]
                notes.append(
                    f"{len(pairs)} of the intervals are over {over} alone ({chance}), such as of "
                    f"{_pair(pairs[0])} with {cases_text(pairs[0].cases)}"
                )
        left_out = max((c.difference.left_out for c in self.analysis.comparisons), default=0)
        if left_out:
            notes.append(f"up to {left_out} held-out cases have no score in every run of a pair")
        return notes

    def differences(self) -> str:
        if not self.analysis.comparisons:
            return "<p>No two runs can be compared yet.</p>\n"
        out = self._figure(
            "differences",
            figures.forest(self.analysis, self.looks),
            "Differences between arms with 95 % intervals.",
            f"Difference of {self.analysis.heading} with its 95 % interval for other seeds and "
            "other cases; small strokes are the seeds. Hollow and dashed: too few to conclude "
            "from. *: p below 0.05 after Holm's correction.",
        )
        head = ["Difference", "Trained on", "Mean", "95 % interval", "p", "p (Holm)"]
        head += ["p (permutation)", "Pairs", "Steps", "Bootstrap"]
        body = [_comparison_row(comparison) for comparison in self.analysis.comparisons]
        caption = f"In {self.analysis.unit or 'the unit of the metric'}, paired by case and seed. "
        caption += "Pairs: held-out cases x seeds. Steps to a training Dice of "
        caption += f"{self.study.reach:g}: difference (ratio), of the seeds where both are."
        table = scrolled(tables.to_html([head, *body]))
        return f'{out}<p class="sub">{escape(caption)}</p>\n{table}'

    def scores(self) -> str:
        if not self.analysis.arms:
            return "<p>No run is finished yet.</p>\n"
        out = self._figure(
            "scores",
            figures.scores(self.analysis, self.looks),
            "Score of each arm against the number of training cases.",
            f"{self.analysis.heading} on the held-out cases: mean of the seeds, plus and minus one "
            "SD between them; points are seeds. Whether arms differ is shown by the paired "
            "intervals above, not by bands that overlap.",
        )
        head = ["Arm", "Trained on", "Mean", "SD (seeds)", "Seeds", "Held out"]
        head += [f"Steps to {self.study.reach:g}", "Reached"]
        return out + scrolled(tables.to_html([head, *map(_arm_row, self.analysis.arms)]))

    def learning(self) -> str:
        if not self.results.finished:
            return "<p>No run is finished yet.</p>\n"
        return self._figure(
            "learning",
            figures.curves(self.results, self.looks, self.study.reach),
            "Training Dice by step.",
            "Training Dice by step, a running mean over a twentieth of the training: mean of the "
            f"seeds, band from the lowest to the highest. Dotted: {self.study.reach:g}. Validation "
            "Dice is below where it was measured.",
        )

    def classes(self) -> str:
        regions = self.analysis.regions
        arms = [
            [arm.name, str(arm.cases), *(_fixed(arm.by_class[r]) for r in regions)]
            for arm in self.analysis.arms
        ]
        head = ["Arm", "Trained on", *regions]
        out = scrolled(tables.to_html([head, *arms], caption=f"{self.analysis.heading}, means."))
        pairs = [
            [_pair(c), str(c.cases), *(_span(c.by_class[r]) for r in regions)]
            for c in self.analysis.comparisons
        ]
        caption = (
            "Difference and 95 % interval of each class, for each by itself: with so many, some "
            "miss 0 by chance."
        )
        return out + scrolled(tables.to_html([["Difference", *head[1:]], *pairs], caption=caption))

    def cases(self) -> str:
        counts = [n for n in self.results.cases() if self.results.of(self.study.reference, n)]
        others = [n for n in counts if any(a.cases == n and a.name != self.study.reference
                                           for a in self.analysis.arms)]  # fmt: skip
        if not others:
            return "<p>No two runs can be compared yet.</p>\n"
        row = metrics.find(self.analysis.metric)
        figure = figures.cases(
            self.analysis, self.results, self.looks, others[-1], row.factor if row else 1.0
        )
        return self._figure(
            "cases",
            figure,
            "Score of each held-out case in two arms.",
            f"{self.analysis.heading} of each held-out case with {cases_text(others[-1])}, mean of "
            f"the seeds: {self.study.reference} along, the other arm up. On the line both are "
            "equal.",
        )

    def protocol_section(self) -> str:
        protocol = self.protocol
        study = self.study
        facts = [("Written", str(protocol.get("date", tables.MISSING)))]
        facts += [("Reference", study.reference), ("Metric", study.metric)]
        facts += [("Training cases", ", ".join(map(str, protocol.get("numbers", study.cases))))]
        facts += [("Seeds", ", ".join(map(str, study.seeds)))]
        compared = [f"{a} against {b}" for a, b in study.compare]
        if compared:
            facts.append(("Compared besides", "; ".join(compared)))
        if "held_out" in protocol:
            facts.append(("Held-out cases", str(len(protocol["held_out"]))))
        out = elements.facts(facts)
        if amendments := protocol.get("amendments"):
            out += warning("Changed after the first run:", [_amendment(a) for a in amendments])
        else:
            out += "<p>Nothing was changed after the first run.</p>\n"
        arms = [[name, _changes(changes)] for name, changes in study.arms.items()]
        out += scrolled(tables.to_html([["Arm", "Changes"], *arms]))
        text = json.dumps(without_paths(protocol), indent=2, default=str, ensure_ascii=False)
        return out + (
            f"<details><summary>The whole protocol</summary><pre>{escape(text)}</pre></details>\n"
        )

    def cost(self) -> str:
        finished = self.results.finished
        head = ["Arm", "Trained on", "Runs", "Steps", "Time of a run", "s per step", "Parameters"]
        head += ["Peak memory (MB)"]
        body = []
        for arm in self.analysis.arms:
            runs = list(self.results.of(arm.name, arm.cases).values())
            speed = _known(f.seconds_per_step for f in runs)
            seconds = _known(f.seconds for f in runs)
            body.append([
                arm.name, str(arm.cases), str(len(runs)), str(max(f.steps for f in runs)),
                duration(float(np.mean(seconds))) if seconds else tables.MISSING,
                f"{np.median(speed):.3g}" if speed else tables.MISSING,
                _largest(f.cost.get("parameters") for f in runs),
                _largest(f.cost.get("peak_memory_mb") for f in runs),
            ])  # fmt: skip
        facts = [("Runs", f"{len(finished)} finished, {len(self.results.missing)} missing")]
        if seconds := _known(f.seconds for f in finished):
            facts.append(("Training time together", duration(sum(seconds))))
        facts.append(("Steps together", f"{sum(f.steps for f in finished):,}"))
        machines = {f"{f.cost.get('devices', 1)} x {f.cost['device']}" for f in finished
                    if "device" in f.cost}  # fmt: skip
        facts += [("Devices", "; ".join(sorted(machines)))] if machines else []
        note = (
            '<p class="sub">Time of training alone. Peak memory on a CPU is of the whole process, '
            "which may have made other runs before."
        )
        return elements.facts(facts) + scrolled(tables.to_html([head, *body])) + note + "</p>\n"

    def _figure(self, name: str, figure: Any, alt: str, caption: str) -> str:
        return elements.figure(save(figure, self.folder / "figures" / f"{name}.png"), alt, caption)


def _comparison_row(found: Comparison) -> list[str]:
    d = found.difference
    counted = f"{d.cases} x {d.seeds}"
    return [
        _pair(found) + " *" * found.starred,
        str(found.cases),
        _signed(d.mean),
        _interval(d.low, d.high) + " (few)" * d.few,
        *map(_p_value, (d.p, found.p_holm, d.p_permutation)),
        counted if d.pairs == d.cases * d.seeds else f"{d.pairs}, {d.seeds} seeds",
        _sooner(found.sooner, d.seeds),
        _interval(d.bootstrap_low, d.bootstrap_high),
    ]


def _sooner(sooner: statistics.Sooner, seeds: int) -> str:
    """Difference and ratio of the steps, and of how many seeds if not of all."""
    if not sooner.seeds:
        return tables.MISSING
    text = f"{sooner.steps:+.0f} ({sooner.ratio:.2f})".replace("-", "\u2212")
    return text if sooner.seeds == seeds else f"{text}, {sooner.seeds} of {seeds}"


def _arm_row(arm: Arm) -> list[str]:
    reached = _known(arm.reached.values())
    return [
        arm.name,
        str(arm.cases),
        _fixed(arm.mean),
        _fixed(arm.sd),
        str(len(arm.seeds)),
        str(arm.held_out),
        f"{np.mean(reached):.0f}" if reached else tables.MISSING,
        f"{len(reached)} of {len(arm.reached)}",
    ]


def _pair(found: Comparison) -> str:
    return f"{found.arm} \u2212 {found.against}"


def _span(d: statistics.Difference) -> str:
    return f"{_signed(d.mean)} {_interval(d.low, d.high)}"


def _interval(low: float, high: float) -> str:
    return tables.MISSING if math.isnan(low) else f"[{number(low)}, {number(high)}]"


def _signed(value: float) -> str:
    return tables.MISSING if math.isnan(value) else number(value)


def _fixed(value: float) -> str:
    return tables.MISSING if math.isnan(value) else f"{value:.2f}"


def _p_value(p: float) -> str:
    if math.isnan(p):
        return tables.MISSING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _known(values) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _largest(values) -> str:
    known = [value for value in values if value is not None]
    return f"{max(known):,.0f}" if known else tables.MISSING


def _name(run: PlannedRun) -> str:
    return f"{run.arm}, {run.cases} cases, seed {run.seed}"


def _planned(run: PlannedRun) -> dict[str, Any]:
    return {"arm": run.arm, "cases": run.cases, "seed": run.seed}


def _run_record(found) -> dict[str, Any]:
    from_log = {name: getattr(found, name) for name in ("steps", "seconds", "seconds_per_step")}
    return analysis_lib.json_safe(_planned(found.run) | from_log | dict(found.cost))


def _changes(changes: Mapping[str, Any]) -> str:
    changes = without_paths(changes)
    return ", ".join(f"{name}={value!r}" for name, value in changes.items()) or "none"


def _amendment(amendment: Mapping[str, Any]) -> str:
    changes = "; ".join(map(str, amendment.get("changes", ())))
    return f"{amendment.get('date')}, after {amendment.get('runs_done')} runs: {changes}"
