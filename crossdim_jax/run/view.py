"""Viewer pages of a run's held-out cases, or of new cases and their predictions."""

from pathlib import Path

import jax

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.evaluation.predict import describe_error
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.report import page, reading, tables, viewer
from crossdim_jax.run import cases
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime.distributed import say
from crossdim_jax.runtime.progress import bar
from crossdim_jax.storage import run_folder


def run(experiment: Experiment, source: str = "", predictions: str = "") -> Path:
    """Writes one page for each case; returns the folder of the pages.

    Of the cases held out from the run, whose report then links to them; or with `source` of the
    cases of that folder.

    Args:
      experiment: of the run.
      source: folder of cases, labelled or not; "" for those held out.
      predictions: folder of their predictions, needed with `source`: as `--mode=predict` wrote
        it; pages go to `viewer` in it.

    Raises:
      ManyErrors: some cases could not be shown; the pages of the others are written.
    """
    if predictions and not source:
        raise ConfigError("--mode=view needs --input=FOLDER of the cases with --output=PREDICTIONS")
    challenge, workdir = experiment.challenge, experiment.workdir
    failed: list[tuple[str, str]] = []
    if source:
        folder = Path(predictions) if predictions else workdir / "predictions_new"
        beside, files = folder, challenge.cases(source, labelled=False, errors=failed)
    else:
        folder, beside, files = (
            workdir / run_folder.PREDICTIONS,
            workdir,
            cases.held_out(experiment),
        )
    if not files and not failed:
        raise DataError(
            f"{workdir}: no case was held out from this training, so there is none to show; "
            "--input=FOLDER --output=PREDICTIONS shows other cases"
        )
    if jax.process_index() > 0:
        return beside / viewer.FOLDER
    scores = {} if source else _scores(workdir, challenge.regions)
    written = 0
    for case in bar(files, description="viewer pages"):
        try:
            _write(challenge, case, folder, beside, scores.get(case.id, ""))
            written += 1
        except Exception as error:  # the next case may well be shown
            failed.append((case.id, describe_error(error, case.id)))
    if not source:
        page.write(workdir, challenge, files)
    say(f"{written} pages written, {len(failed)} failed")
    if failed:
        raise ManyErrors(f"{written} pages are written; correct the cases below", failed)
    return beside / viewer.FOLDER


def _write(challenge: Challenge, case: CaseFiles, folder: Path, to: Path, scores: str) -> None:
    prediction = challenge.prediction_path(folder, case.id)
    if not prediction.exists():
        raise DataError(
            f"{prediction}: is not there; --mode=evaluate predicts the held-out cases, "
            "--mode=predict others"
        )
    viewer.write(viewer.path(to, case.id), challenge, case, prediction, scores=scores)


def _scores(workdir: Path, regions: tuple[str, ...]) -> dict[str, str]:
    """Line of each case's Dice, and of which weights, for the head of its page."""
    made = reading.read_summary(workdir / reading.SUMMARY).get("provenance", {})
    which = f" (the {made['checkpoint']} weights)" if "checkpoint" in made else ""
    return {
        row["id"]: f"Dice (%){which}: "
        + ", ".join(f"{name} {tables.cell(row.get(f'dice_{name}'), 'dice')}" for name in regions)
        for row in reading.read_cases(workdir / reading.CASES)
    }
