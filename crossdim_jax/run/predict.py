"""Prediction of a folder of cases by the weights of a run, or of all folds together."""

import functools
from pathlib import Path

import jax

from crossdim_jax.errors import ConfigError
from crossdim_jax.evaluation import postprocessing, predict
from crossdim_jax.run import ensemble
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say
from crossdim_jax.storage import run_folder


def run(experiment: Experiment, source: str, target: str, *, overwrite: bool = False) -> Path:
    """Segments a folder of cases, labelled or not, with the best or last weights of the run.

    In the folder of a cross-validation: with those of all folds, by their mean probabilities.

    Args:
      experiment: of the run, or of the folds, that were trained.
      source: folder of cases in the challenge's layout.
      target: folder for `{case}.nii.gz`; "" for `predictions_new` in the run folder.
      overwrite: True predicts again what is already there.

    Returns:
      the folder written to.

    Raises:
      ManyErrors: some cases failed; the others are written.
    """
    if not source:
        raise ConfigError("--mode=predict needs --input=FOLDER, a folder of cases")
    stop.enter(stop.repeatable("predicting"))
    experiment, first = experiment.for_inference(), jax.process_index() == 0
    folder = Path(target) if target else experiment.workdir / "predictions_new"
    failed: list[tuple[str, str]] = []
    predictor, weights = ensemble.predictor(experiment)
    files = experiment.challenge.cases(source, labelled=False, errors=failed)
    say(f"predicting {len(files)} cases with {weights}")
    result = predict.predict_folder(
        experiment.challenge,
        files,
        predictor,
        folder,
        overwrite=overwrite,
        write=first,
        export=True,
        postprocess=functools.partial(postprocessing.apply, rules=rules(experiment)),
        errors=failed,
        progress=first,
    )
    say(
        f"{len(result.written)} written, {len(result.skipped)} already there, "
        f"{len(result.failed)} failed: {folder}"
    )
    result.raise_if_failed()
    return folder


def rules(experiment: Experiment) -> tuple[postprocessing.Rule, ...]:
    """The rules that the held-out cases of the run support; none unless the config asks for them.

    Raises DataError if they were not looked for, or their record is damaged.
    """
    if not experiment.inference.keep_largest:
        return ()
    found = postprocessing.read(experiment.workdir / run_folder.POSTPROCESSING)
    for rule in found:
        say(f"postprocessing: {rule}")
    return found
