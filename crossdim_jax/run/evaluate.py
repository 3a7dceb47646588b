"""Evaluation of a run on the cases that were held out from it, and its report."""

from pathlib import Path

import jax

from crossdim_jax.errors import DataError
from crossdim_jax.evaluation import predict, score
from crossdim_jax.report import page
from crossdim_jax.run import cases, content
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say, wait_for_all
from crossdim_jax.storage import run_folder


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
    say(f"evaluating the weights of step {record['step']} on {len(files)} held-out cases")
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
    path = _report(experiment)
    result.raise_if_failed()
    return path


def _report(experiment: Experiment) -> Path:
    files = cases.held_out(experiment)
    if jax.process_index() > 0:
        return experiment.workdir
    return page.write(experiment.workdir, experiment.challenge, files)
