"""Cases -> predictions on disk -> one row per case -> summary.

Nothing here knows a challenge's labels or scores: those are the challenge's own methods. One case
that fails never stops the others; a folder that cannot be written stops everything at once.
"""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from crossdim_jax import metrics, plain
from crossdim_jax.challenges import CaseFiles, Challenge, Evaluated, Table
from crossdim_jax.data import grid
from crossdim_jax.errors import CrossdimError, DataError, ManyErrors
from crossdim_jax.files import write_text
from crossdim_jax.report import tables
from crossdim_jax.storage.text import shown, without_folders, without_paths

logger = logging.getLogger(__name__)

# image (z, y, x, c) float32, preprocessed -> probabilities (z, y, x, k) float32
PredictFn = Callable[[np.ndarray], np.ndarray]
NOTHING_SCORED = "no case could be predicted and scored; correct the cases below and run again"


@dataclasses.dataclass
class Result:
    """What `predict_folder` did: paths written and skipped, and (case id, message) per failure."""

    written: list[Path] = dataclasses.field(default_factory=list)
    skipped: list[Path] = dataclasses.field(default_factory=list)
    failed: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def raise_if_failed(self) -> None:
        """Raises ManyErrors with every failed case; does nothing if there is none."""
        if self.failed:
            done = len(self.written) + len(self.skipped)
            title = f"{done} cases are predicted; correct the cases below and run again"
            raise ManyErrors(title, self.failed)


def predict_case(
    challenge: Challenge,
    files: CaseFiles,
    predict_fn: PredictFn,
    out_folder: str | Path,
    *,
    overwrite: bool = False,
    write: bool = True,
    export: bool = False,
    notes: dict[str, list[str]] | None = None,
) -> Path:
    """Predicts one case and writes its label map on the case's own grid; returns the path.

    The case's label, if it has one, is not read. An existing file is left alone and its path
    returned, unless `overwrite`: then it is removed first. write, export: see `predict_folder`.
    notes: note on the preparation -> cases, to which this one is added; only a new note is said.

    Raises DataError if the prediction's path is one of the case's own files.
    """
    path = _output_path(challenge, out_folder, files)
    if path.exists() and not overwrite:
        return path
    if write:  # if what follows fails, no older prediction may pass for this one
        path.unlink(missing_ok=True)
    case = challenge.load(dataclasses.replace(files, label=None))
    prepared = challenge.prepare(case)
    if prepared.note:
        noted = ({} if notes is None else notes).setdefault(prepared.note, [])
        if not noted:
            logger.warning("%s: %s", shown(files.id), prepared.note)
        noted.append(files.id)
    probabilities = np.asarray(predict_fn(prepared.image))
    expected = (*prepared.image.shape[:-1], len(challenge.classes))
    if probabilities.shape != expected:
        raise ValueError(f"{files.id}: predict_fn gave {probabilities.shape}, expected {expected}")
    if not np.isfinite(probabilities).all():
        raise ValueError(f"{files.id}: the network's output is not finite")
    if not write:
        return path
    label = challenge.finish(probabilities, prepared)
    if export:  # first: what is there under the prediction's own name is complete
        challenge.export(Path(out_folder), files, label, case.geometry)
    return challenge.write(path, label, case.geometry)


def _output_path(challenge: Challenge, folder: str | Path, files: CaseFiles) -> Path:
    """The prediction's path, unless that is a file the case is made of."""
    path = challenge.prediction_path(folder, files.id)
    for own in (*files.images, files.label):
        if own is not None and own.exists() and path.exists() and path.samefile(own):
            raise DataError(
                f"{path}: is an image or label of the case itself, expected a prediction or "
                "nothing there; choose another folder for the predictions"
            )
    return path


def predict_folder(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    predict_fn: PredictFn,
    out_folder: str | Path,
    *,
    overwrite: bool = False,
    write: bool = True,
    export: bool = False,
    errors: Iterable[tuple[str, str]] = (),
    progress: bool = True,
) -> Result:
    """Predicts every case, going on after one that fails.

    overwrite: predict again what is already there; what fails is there no more.
    write: False runs `predict_fn` on the same cases and touches no file: on all processes but the
      first, where the network spans several. All must see the same `out_folder`.
    export: also write the challenge's further formats, see `Challenge.export` and `export_all`.
    errors: (case id, message) of cases that already failed, put first among the result's failures.
    Raises DataError at once if `out_folder` cannot be written or is full.
    """
    out_folder = Path(out_folder)
    if write:
        check_writable(out_folder)
    result, notes = Result(failed=list(errors)), {}
    # Looked up before the first file is written, so that all processes leave out the same.
    there = {
        case.id
        for case in files
        if os.path.exists(challenge.prediction_path(out_folder, case.id))  # also of a long name
    }
    with _bar(files, "predict", progress) as bar:
        for case in bar:
            bar.set_postfix_str(shown(case.id))
            try:
                path = _output_path(challenge, out_folder, case)
                if case.id in there and not overwrite:
                    result.skipped.append(path)
                    continue
                predict_case(
                    challenge,
                    case,
                    predict_fn,
                    out_folder,
                    overwrite=True,
                    write=write,
                    export=export,
                    notes=notes,
                )
                result.written.append(path)
            except Exception as error:  # the next case may well succeed
                if write:
                    _raise_if_folder_is_the_fault(error, out_folder)
                result.failed.append((case.id, _describe(error, case.id)))
    for note, cases in notes.items():
        if len(cases) > 1:
            logger.warning("%d of %d cases in all: %s", len(cases), len(files), note)
    if export and write:
        paths = [(case, challenge.prediction_path(out_folder, case.id)) for case in files]
        challenge.export_all(out_folder, [pair for pair in paths if os.path.exists(pair[1])])
    return result


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
    {"n_cases", "statistics"}}), `tables` (see `challenges.Table`), `truths` ({case id: a
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
    """The files that a note on a case may name."""
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
    """Of the cases that have not failed: those with a prediction, all paths, and what is missing.

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
    """What was scored and how, with the statistics over all cases and over those of each group."""
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
    """The statistics of each of the challenge's groups, in the order of their first case."""
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
    try:
        write_text(folder / "cases.csv", plain.csv_text([["id", *columns, "note"], *rows]))
        for table in further:
            write_text(folder / f"{table.name}.csv", plain.csv_text([table.columns, *table.rows]))
        text = json.dumps(summary, indent=2, allow_nan=False)
        write_text(folder / "summary.json", text + "\n")
        write_text(folder / "table.md", tables.markdown(summary))
    except OSError as error:
        raise DataError(_folder_message(folder, error)) from error


def _score_all(
    challenge: Challenge,
    files: Sequence[CaseFiles],
    paths: Mapping[str, Path],
    num_threads: int | None,
    progress: bool,
) -> list[tuple[str, "_Score"]]:
    """(case id, score) of every case; no row, and the reason, where it could not be scored."""

    def score(case: CaseFiles) -> _Score:
        try:
            return _score_case(challenge, case, paths[case.id])
        except Exception as error:
            return _Score(None, _describe(error, case.id))

    scored = []
    pool = ThreadPoolExecutor(num_threads or min(4, os.cpu_count() or 1))
    try:
        with _bar(files, "evaluate", progress) as bar:
            for case, outcome in zip(bar, pool.map(score, files), strict=True):
                bar.set_postfix_str(shown(case.id))
                scored.append((case.id, outcome))
    finally:  # an interrupt must not wait for the cases that have not begun
        pool.shutdown(cancel_futures=True)
    return scored


@dataclasses.dataclass(frozen=True)
class _Score:
    """Of one case: its row, a note if the grids differ or there is no row, and what it was of."""

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
    """Equal for equal labels of equal size."""
    found = hashlib.sha256(repr(label.shape).encode())
    found.update(np.ascontiguousarray(label, np.int32))
    return found.hexdigest()[:16]


def check_writable(folder: Path) -> None:
    """Makes the folder and writes a probe there; raises DataError naming it if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(65536))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise DataError(_folder_message(folder, error)) from error


def _folder_message(folder: Path, error: OSError) -> str:
    reason = error.strerror or str(error)
    return (
        f"{folder}: cannot write results there: {reason}. "
        "Expected a writable folder with free space; free some, or choose another folder"
    )


def _raise_if_folder_is_the_fault(error: BaseException, folder: Path) -> None:
    cause: BaseException | None = error
    while cause is not None:
        full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if isinstance(cause, OSError) and cause.errno in full:
            raise DataError(_folder_message(folder, cause)) from error
        cause = cause.__cause__ or cause.__context__
    check_writable(folder)


def _describe(error: Exception, case_id: str) -> str:
    if not isinstance(error, CrossdimError):  # a fault of the program: show where
        logger.error("%s: unexpected error", shown(case_id), exc_info=error)
    return f"{type(error).__name__}: {error}"


def _bar(files: Sequence[CaseFiles], what: str, progress: bool) -> Any:
    # A log file gets a line now and then, a terminal a live bar.
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(files, desc=what, unit="case", disable=not progress, mininterval=interval)
