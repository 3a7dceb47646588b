"""Weights that predict: those of a single run, or of all folds of a cross-validation together."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from crossdim_jax.errors import DataError
from crossdim_jax.run.done import DONE
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.storage import run_folder
from crossdim_jax.training import checkpoint


def all_folds(experiment: Experiment) -> list[Experiment]:
    """The experiments of all folds of a cross-validation, each in its own folder.

    Their split is official where the config asks for that and it has folds; else one of this
    project's own.
    """
    split, official = experiment.data.split, 0
    if split["kind"] == "official":
        official = experiment.challenge.official_folds(experiment.data.root)
    kind, count = ("official", official) if official else ("kfold", split["folds"])
    return _folds(experiment, kind, count)


def _folds(experiment: Experiment, kind: str, count: int) -> list[Experiment]:
    return [_fold(experiment, {"kind": kind, "folds": count, "fold": k}) for k in range(count)]


def _fold(experiment: Experiment, split: Mapping[str, Any]) -> Experiment:
    config = ConfigDict(experiment.config.to_dict())  # plain values: no reference is shared
    config.data.split.update(split)
    if "fold" in config:
        config.fold = split["fold"]
    return dataclasses.replace(
        experiment,
        config=config.lock(),
        workdir=experiment.workdir / f"fold_{split['fold']}",
        data=dataclasses.replace(experiment.data, split={**experiment.data.split, **split}),
    )


def members(experiment: Experiment) -> list[Experiment]:
    """The experiments whose weights predict together: a single run's, or those of all folds.

    How many folds there are is what the first of them was started with: the data need not be there.

    Raises DataError if some folds are not trained yet.
    """
    if run_folder.has_checkpoint(experiment.workdir):
        return [experiment]
    started = sorted(filter(run_folder.has_checkpoint, experiment.workdir.glob("fold_*")))
    if not started:
        return [experiment]  # a single run says what it lacks
    split = run_folder.read_config(started[0])["data"]["split"]
    folds = _folds(experiment, split["kind"], split["folds"])
    lacking = [fold.workdir.name for fold in folds if not (fold.workdir / DONE).is_file()]
    if lacking:
        raise DataError(
            f"{experiment.workdir}: {', '.join(lacking)} of {len(folds)} folds are not trained "
            "yet; finish them with --mode=folds, or give the folder of one fold as --workdir"
        )
    return folds


def predictor(experiment: Experiment) -> tuple[Callable[[np.ndarray], np.ndarray], str]:
    """The mean of the probabilities of all `members`, and in words what predicts."""
    parts, said = [], []
    for member in members(experiment):
        member.require_same_network()
        variables, record = member.trained()
        parts.append(variables)
        said.append(checkpoint.described(record))
    window = experiment.predictor(flipped=True)

    def predict(image: np.ndarray) -> np.ndarray:
        total = window(parts[0], image)
        for variables in parts[1:]:
            total = total + window(variables, image)
        return total / len(parts)

    if len(parts) == 1:
        return predict, said[0]
    return predict, f"the mean of {len(parts)} folds: {'; '.join(dict.fromkeys(said))}"
