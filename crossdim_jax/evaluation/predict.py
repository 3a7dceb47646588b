"""Predictions of cases, written to a folder.

One case that fails never stops the others; a folder that cannot be written stops
everything at once.
"""

import dataclasses
import errno
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import CrossdimError, DataError, ManyErrors
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage.files import ANOTHER_FOLDER, writing
from crossdim_jax.text import shown

logger = logging.getLogger(__name__)

# label (z, y, x) -> label (z, y, x), on the case's own grid
LabelFn = Callable[[np.ndarray], np.ndarray]
# image (z, y, x, c) float32, preprocessed -> probabilities (z, y, x, k) float32
PredictFn = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass
class Result:
    """Result of `predict_folder`: paths written and skipped, and (case id, message) per failure."""

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
    postprocess: LabelFn | None = None,
    notes: dict[str, list[str]] | None = None,
) -> Path:
    """Predicts one case and writes its label map on the case's own grid; returns the path.

    The case's label, if it has one, is not read. An existing file is left alone and its path
    returned, unless `overwrite`: then it is removed first. write, export, postprocess: see
    `predict_folder`.
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
    if postprocess is not None:
        label = postprocess(label)
    if export:  # first: what is there under the prediction's own name is complete
        challenge.export(Path(out_folder), files, label, case.geometry)
    return challenge.write(path, label, case.geometry)


def _output_path(challenge: Challenge, folder: str | Path, files: CaseFiles) -> Path:
    """Path of a prediction. Raises DataError if that is a file the case is made of."""
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
    postprocess: LabelFn | None = None,
    errors: Iterable[tuple[str, str]] = (),
    progress: bool = True,
) -> Result:
    """Predicts every case, going on after one that fails.

    overwrite: predict again what is already there; what fails is there no more.
    write: False runs `predict_fn` on the same cases and touches no file: on all processes but the
      first, where the network spans several. All must see the same `out_folder`.
    export: also write the challenge's further formats, see `Challenge.export` and `export_all`.
    postprocess: changes the labels before they are written.
    errors: (case id, message) of cases that already failed, put first among the result's failures.
    Raises DataError at once if `out_folder` cannot be written or is full.
    """
    out_folder = Path(out_folder)
    if write:
        check_writable(out_folder)
    result, notes = Result(failed=list(errors)), {}
    # Looked up before the first file is written, so that all processes leave out the same.
    existing = {
        case.id
        for case in files
        if os.path.exists(challenge.prediction_path(out_folder, case.id))  # also of a long name
    }
    with bar(files, description="predict", enabled=progress) as cases:
        for case in cases:
            cases.set_postfix_str(shown(case.id))
            try:
                path = _output_path(challenge, out_folder, case)
                if case.id in existing and not overwrite:
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
                    postprocess=postprocess,
                    notes=notes,
                )
                result.written.append(path)
            except Exception as error:  # the next case may well succeed
                if write:
                    _raise_if_folder_is_the_fault(error, out_folder)
                result.failed.append((case.id, describe_error(error, case.id)))
    for note, cases in notes.items():
        if len(cases) > 1:
            logger.warning("%d of %d cases in all: %s", len(cases), len(files), note)
    if export and write:
        paths = [(case, challenge.prediction_path(out_folder, case.id)) for case in files]
        challenge.export_all(out_folder, [pair for pair in paths if os.path.exists(pair[1])])
    return result


def check_writable(folder: Path) -> None:
    """Makes the folder and writes a probe there; raises DataError naming it if that fails."""
    with writing(folder, "results", remedy=ANOTHER_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(65536))
            probe.flush()
            os.fsync(probe.fileno())


def _raise_if_folder_is_the_fault(error: BaseException, folder: Path) -> None:
    cause: BaseException | None = error
    with writing(folder, "results", remedy=ANOTHER_FOLDER):
        while cause is not None:
            full = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            if isinstance(cause, OSError) and cause.errno in full:
                raise cause
            cause = cause.__cause__ or cause.__context__
    check_writable(folder)


def describe_error(error: Exception, case_id: str) -> str:
    """Message of the error of one case; a fault of the program is logged with its traceback."""
    if not isinstance(error, CrossdimError):  # a fault of the program: show where
        logger.error("%s: unexpected error", shown(case_id), exc_info=error)
    return f"{type(error).__name__}: {error}"
