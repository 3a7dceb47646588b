"""Weights that predict: those of a single run, or of all folds of a cross-validation together."""

import dataclasses
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from crossdim_jax.errors import DataError
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.storage import run_folder

DONE = "done"  # an empty file in the folder of a fold that is trained and evaluated


def of_fold(experiment: Experiment, fold: int) -> Experiment:
    """The experiment of one fold, in its own folder.

    Its split is one of the official folds where the config asks for the official split and that has
    folds; else one of this project's own.
    """
    return _of_fold(experiment, fold, _official(experiment))


def _of_fold(experiment: Experiment, fold: int, official: int) -> Experiment:
    split = {"kind": "official" if official else "kfold", "fold": fold}
    config = ConfigDict(experiment.config.to_dict())  # plain values: no reference is shared
    config.data.split.update(split)
    if "fold" in config:
        config.fold = fold
    return dataclasses.replace(
        experiment,
        config=config.lock(),
        workdir=experiment.workdir / f"fold_{fold}",
        data=dataclasses.replace(experiment.data, split={**experiment.data.split, **split}),
    )


def all_folds(experiment: Experiment) -> list[Experiment]:
    """The experiments of all folds of a cross-validation."""
    official = _official(experiment)
    count = official or experiment.data.split["folds"]
    return [_of_fold(experiment, fold, official) for fold in range(count)]


def _official(experiment: Experiment) -> int:
    """Number of official folds if the config asks for them; 0 if it does not, or there are none."""
    if experiment.data.split["kind"] != "official":
        return 0
    return experiment.challenge.official_folds(experiment.data.root)


def members(experiment: Experiment) -> list[Experiment]:
    """The experiments whose weights predict together: a single run's, or those of all folds.

    Raises DataError if some folds are not trained yet.
    """
    if run_folder.has_checkpoint(experiment.workdir):
        return [experiment]
    folds = all_folds(experiment)
    started = any(run_folder.has_checkpoint(fold.workdir) for fold in folds)
    trained = [fold for fold in folds if (fold.workdir / DONE).is_file()]
    if started and len(trained) < len(folds):
        lacking = [fold.workdir.name for fold in folds if fold not in trained]
        raise DataError(
            f"{experiment.workdir}: {', '.join(lacking)} of {len(folds)} folds are not trained "
            "yet; finish them with --mode=folds, or give the folder of one fold as --workdir"
        )
    return trained or [experiment]  # neither: a single run says what it lacks


def predictor(experiment: Experiment) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """The mean of the probabilities of all `members`, and in words what predicts."""
    parts, steps = [], []
    for member in members(experiment):
        member.require_same_network()
        variables, record = member.trained()
        parts.append(variables)
        steps.append(str(record["step"]))
    window = experiment.predictor(flipped=True)

    def predict(image: np.ndarray) -> np.ndarray:
        total = window(parts[0], image)
        for variables in parts[1:]:
            total = total + window(variables, image)
        return total / len(parts)

    if len(parts) == 1:
        return predict, f"the weights of step {steps[0]}"
    return predict, f"the mean of {len(parts)} folds, with the weights of steps {', '.join(steps)}"
