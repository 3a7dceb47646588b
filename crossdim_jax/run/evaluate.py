"""Evaluation of a run on the cases that were held out from it, and its report."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.evaluation import postprocessing, predict, score
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.report import page
from crossdim_jax.run import cases, content
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say, wait_for_all
from crossdim_jax.storage import run_folder
from crossdim_jax.training import checkpoint


def run(experiment: Experiment) -> Path:
    """Predicts and scores the held-out cases, and writes the report; returns the report's path.

    Raises:
      ManyErrors: some cases could not be predicted; the others are scored.
    """
    stop.enter(stop.repeatable("evaluating"))
    with experiment.alone("evaluating"):
        return _evaluate(experiment.for_inference())


def report(experiment: Experiment) -> Path:
    """Writes `report.html` from what the run folder holds; returns its path."""
    stop.enter(stop.repeatable("reporting"))
    with experiment.alone("evaluating"):
        return _report(experiment)


def _evaluate(experiment: Experiment) -> Path:
    first, workdir = jax.process_index() == 0, experiment.workdir
    experiment.require_same_network()
    files = cases.held_out(experiment)
    if not files:
        raise DataError(
            f"{workdir}: no case was held out from this training, so there is nothing "
            "to evaluate; --mode=predict segments a folder of cases"
        )
    variables, record = experiment.trained()
    say(f"evaluating {checkpoint.described(record)}, on {len(files)} held-out cases")
    predictor, folder = experiment.predictor(flipped=True), workdir / run_folder.PREDICTIONS
    result = predict.predict_folder(
        experiment.challenge,
        files,
        lambda image: predictor(variables, image),
        folder,
        overwrite=True,  # those that are there may be of older weights
        write=first,
        progress=first,
    )
    wait_for_all("predictions")
    if first:
        provenance = {
            "checkpoint_step": record["step"],
            "checkpoint": checkpoint.which(record),
            **experiment.provenance(),
            **content.provenance(experiment, files),
        }
        scored = workdir / run_folder.EVALUATION
        score.evaluate_cases(
            experiment.challenge,
            files,
            folder,
            scored,
            failed=result.failed,
            provenance=provenance,
        )
        say((scored / "table.md").read_text(encoding="utf-8"))
        find_rules(experiment, files)
    path = _report(experiment)
    result.raise_if_failed()
    return path


def find_rules(experiment: Experiment, files: Sequence[CaseFiles]) -> None:
    """Looks for rules of postprocessing in the predictions of held-out cases, if they are wanted.

    They change no score: those are of the predictions as the network made them.
    """
    path = experiment.workdir / run_folder.POSTPROCESSING
    if not experiment.inference.keep_largest:
        path.unlink(missing_ok=True)  # rules of older weights
        return
    challenge, folder = experiment.challenge, experiment.workdir / run_folder.PREDICTIONS

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for case in files:
            predicted = challenge.prediction_path(folder, case.id)
            if predicted.exists():
                yield challenge.read_prediction(predicted)[0], challenge.load(case).label

    rules = postprocessing.find(pairs, challenge.structures, challenge.ignore)
    record = postprocessing.record(rules)
    run_folder.write_json(path, record)
    for rule in rules:
        say(f"postprocessing: {rule}")
    if not rules:
        say("postprocessing: keeping the largest component only improves nothing; nothing is done")


def _report(experiment: Experiment) -> Path:
    files = cases.held_out(experiment)
    if jax.process_index() > 0:
        return experiment.workdir
    return page.write(experiment.workdir, experiment.challenge, files)
