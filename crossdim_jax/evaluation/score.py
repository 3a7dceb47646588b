"""Evaluation: from predictions on disk to a row for each case and a summary.

Nothing here knows a challenge's labels or scores: those are the challenge's own methods. One case
that fails never stops the others; a folder that cannot be written stops everything at once.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax import metrics
from crossdim_jax.challenges.base import Challenge, Evaluated, Table
from crossdim_jax.errors import DataError, ManyErrors
from crossdim_jax.evaluation.predict import check_writable, describe_error
from crossdim_jax.imaging import grid
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.report import tables
from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage import plain
from crossdim_jax.storage.files import ANOTHER_FOLDER, write_text, writing
from crossdim_jax.text import shown, without_folders, without_paths

logger = logging.getLogger(__name__)

NOTHING_SCORED = "no case could be predicted and scored; correct the cases below and run again"


def evaluate_cases(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    predictions_folder: str | Path,
    out_folder: str | Path,
    *,
    failed: Iterable[tuple[str, str]] = (),
    provenance: Mapping[str, Any] | None = None,
    num_threads: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every prediction against its truth; writes cases.csv, summary.json and table.md.

    And a CSV for each of the challenge's further tables.

    Runs no network: of several processes one suffices. A prediction on another grid gets the
    profile's row for a mismatch; one that is missing or cannot be read is left out. Both are named
    in the result and in table.md.

    files: cases with labels. predictions_folder: what `predict_folder` wrote.
    failed: (case id, message) of cases that could not be predicted; not scored, whatever file is
      there.
    provenance: how the predictions were made, such as {"checkpoint_step": 100, "flips": True};
      plain values, recorded and printed as they are.

    Returns the summary: `challenge`, `profile`, `aggregation`, `definitions`, `regions`, `n_cases`,
    `statistics` ({"dice_WT": {"mean", ...}}, None for an undefined value), `groups` ({name:
    {"n_cases", "statistics"}}), `tables` (see `challenges.base.Table`), `truths` ({case id: a
    fingerprint of its label}, for comparisons of runs), `provenance`, `mismatched`,
    `failed` and `missing` ([case id, message] each).

    Raises DataError if no prediction exists, ManyErrors if none could be made or scored.
    """
    predictions_folder, out_folder = Path(predictions_folder), Path(out_folder)
    failed = list(failed)
    present, paths, missing = _predicted(challenge, files, predictions_folder, failed)
    check_writable(out_folder)

    scored = _score_all(challenge, present, paths, num_threads, progress)
    failed += [(case, score.note) for case, score in scored if score.row is None]
    mismatched = [(case, score.note) for case, score in scored if score.row and score.note]
    # The terminal is told where the files lie; what is written is passed on, and need not say so.
    for kind, notes in {"mismatched": mismatched, "failed": failed, "missing": missing}.items():
        for case, note in notes:
            logger.warning("%s prediction: %s: %s", kind, shown(case), shown(note))
    by_id = {case.id: case for case in files}

    def named(case: str, note: str) -> str:
        return without_folders(note, _own_files(challenge, by_id.get(case), predictions_folder))

    evaluated = [
        Evaluated(case, score.row, paths[case.id], named(case.id, score.note))
        for case, (_, score) in zip(present, scored, strict=True)
        if score.row is not None
    ]
    if not evaluated:
        raise ManyErrors(NOTHING_SCORED, failed)
    further = challenge.tables(evaluated)
    summary = plain.json_safe(
        {
            **_summary(challenge, evaluated),
            "tables": [dataclasses.asdict(table) for table in further],
            "truths": {case: score.truth for case, score in scored if score.truth},
            "provenance": without_paths(provenance or {}, [out_folder]),
            "mismatched": [[case, named(case, note)] for case, note in mismatched],
            "failed": [[case, named(case, note)] for case, note in failed],
            "missing": [[case, named(case, note)] for case, note in missing],
        }
    )
    _write(out_folder, summary, evaluated, further)
    return summary


def _own_files(challenge: Challenge, case: CaseFiles | None, folder: Path) -> list[Path]:
    """Files that a note on a case may name."""
    if case is None:
        return [folder / "any"]
    own = [path for path in (*case.images, case.label) if path is not None]
    return [challenge.prediction_path(folder, case.id), *own]


def _predicted(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    folder: Path,
    failed: Sequence[tuple[str, str]],
) -> tuple[list[CaseFiles], dict[str, Path], list[tuple[str, str]]]:
    """Cases with a prediction among those that have not failed, all paths, and what is missing.

    Raises as `evaluate_cases` if there is no prediction.
    """
    without = {case for case, _ in failed}
    files = [case for case in files if case.id not in without]
    paths = {case.id: challenge.prediction_path(folder, case.id) for case in files}
    present = [case for case in files if os.path.exists(paths[case.id])]
    missing = [
        (name, f"{path} does not exist") for name, path in paths.items() if not os.path.exists(path)
    ]
    if not present and failed:
        raise ManyErrors(NOTHING_SCORED, [*failed, *missing])
    if not present:
        raise DataError(
            f"{folder}: found no prediction of the {len(files)} cases to evaluate, "
            f"expected such as {next(iter(paths.values()), '{case id}.nii.gz')}; predict them first"
        )
    return present, paths, missing


def _summary(challenge: Challenge, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Summary of what was scored and how, with statistics over all cases and over each group."""
    profile = metrics.PROFILES[challenge.profile]
    return {
        "challenge": challenge.name,
        "profile": profile.name,
        "aggregation": challenge.aggregate,
        "definitions": dict(profile.definitions),
        "regions": list(challenge.regions),
        "n_cases": len(evaluated),
        "statistics": challenge.summarise([case.row for case in evaluated]),
        "groups": _grouped(challenge, evaluated),
    }


def _grouped(challenge: Challenge, evaluated: Sequence[Evaluated]) -> dict[str, Any]:
    """Statistics of each of the challenge's groups, in the order of their first case."""
    members: dict[str, list[Mapping[str, float]]] = {}
    for case in evaluated:
        for group in challenge.groups(case.files):
            members.setdefault(group, []).append(case.row)
    return {
        group: {"n_cases": len(rows), "statistics": challenge.summarise(rows)}
        for group, rows in members.items()
    }


def _write(
    folder: Path,
    summary: Mapping[str, Any],
    evaluated: Sequence[Evaluated],
    further: Sequence[Table],
) -> None:
    columns = list(evaluated[0].row)
    rows = [[case.files.id, *(case.row[c] for c in columns), case.note] for case in evaluated]
    with writing(folder, "results", remedy=ANOTHER_FOLDER):
        write_text(folder / "cases.csv", plain.csv_text([["id", *columns, "note"], *rows]))
        for table in further:
            write_text(folder / f"{table.name}.csv", plain.csv_text([table.columns, *table.rows]))
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_text(folder / "summary.json", text + "\n")
        write_text(folder / "table.md", tables.markdown(summary))


def _score_all(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    paths: Mapping[str, Path],
    num_threads: int | None,
    progress: bool,
) -> list[tuple[str, "_Score"]]:
    """Scores of all cases, (case id, score); without a row where a case could not be scored."""

    def score(case: CaseFiles) -> _Score:
        try:
            return _score_case(challenge, case, paths[case.id])
        except Exception as error:
            return _Score(None, describe_error(error, case.id))

    scored = []
    pool = ThreadPoolExecutor(num_threads or min(4, os.cpu_count() or 1))
    try:
        with bar(files, description="evaluate", enabled=progress) as cases:
            for case, outcome in zip(cases, pool.map(score, files), strict=True):
                cases.set_postfix_str(shown(case.id))
                scored.append((case.id, outcome))
    finally:  # an interrupt must not wait for the cases that have not begun
        pool.shutdown(cancel_futures=True)
    return scored


@dataclasses.dataclass(frozen=True)
class _Score:
    """Score of one case: metrics, a note on grid mismatch or error, and the hash of the truth."""

    row: dict[str, float] | None
    note: str
    truth: str = ""


def _score_case(challenge: Challenge, files: CaseFiles, path: Path) -> _Score:
    case = challenge.load(files)
    if case.label is None:
        raise DataError(f"{files.id}: there is no label to evaluate against")
    predicted, geometry = challenge.read_prediction(path)
    if why := grid.difference(case.geometry, geometry, challenge.grid_tolerance_mm):
        row = challenge.mismatch(case.label, case.spacing_mm, kind=case.kind)
        return _Score(row, f"{path}: {why}; scored as a mismatch", _fingerprint(case.label))
    challenge.check_label(path, predicted)
    row = challenge.score(case.label, predicted, case.spacing_mm, kind=case.kind)
    return _Score(row, "", _fingerprint(case.label))


def _fingerprint(label: np.ndarray) -> str:
    """Hash of a label's shape and values."""
    found = hashlib.sha256(repr(label.shape).encode())
    found.update(np.ascontiguousarray(label, np.int32))
    return found.hexdigest()[:16]
