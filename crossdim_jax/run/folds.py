"""Cross-validation: one run for each fold, all held-out cases scored together, one ensemble.

The folder of a cross-validation holds a run folder for each fold, `fold_0`, `fold_1`, ..., and over
all of them `predictions/`, `evaluation/` and `report.html` as a single run has them: every case is
predicted by the fold that was not trained on it.
"""

import os
import shutil
from pathlib import Path

import jax

from crossdim_jax.data import splits
from crossdim_jax.errors import ConfigError
from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score
from crossdim_jax.report import page
from crossdim_jax.run import cases, content, done, evaluate, train
from crossdim_jax.run.ensemble import all_folds
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say, wait_for_all
from crossdim_jax.storage import run_folder
from crossdim_jax.storage.files import writing


def run(experiment: Experiment) -> Path:
    """Trains and evaluates every fold, then scores all cases together; returns the report's path.

    Each fold is a run of its own and goes on where it was; one that is done is left as it is.

    Args:
      experiment: of the whole; its split's `folds` says how many there are, whatever `kind` and
        `fold` are.

    Raises:
      ConfigError: the folder is that of a single run.
      ManyErrors: some cases are faulty, or could not be predicted; correct them and run again.
    """
    if run_folder.has_checkpoint(experiment.workdir):
        raise ConfigError(
            f"{experiment.workdir}: this folder holds a single run; give another --workdir for the "
            "folds"
        )
    if test := experiment.data.split.get("test"):
        raise ConfigError(
            f"config.data.split.test={test}: a cross-validation scores every case once, by the "
            "fold that held it out; expected 0, or a single run with --mode=train"
        )
    folds = all_folds(experiment)
    cases.check_folds(folds)
    for number, fold in enumerate(folds):
        if done.is_done(fold):
            say(f"fold {number} is done: {fold.workdir}")
            continue
        if number:  # what is done is kept
            stop.enter(stop.repeatable(f"in fold {number}"))
        say(f"fold {number} of {len(folds)}: {fold.workdir}")
        train.run(fold)
        if jax.process_index() == 0:
            done.mark(fold.workdir)
    return _combine(experiment, folds)


def _combine(experiment: Experiment, folds: list[Experiment]) -> Path:
    """Predictions, scores and report over the held-out cases of all folds."""
    stop.enter(stop.repeatable("evaluating"))
    wait_for_all("folds")
    if jax.process_index() > 0:
        return experiment.workdir
    folder = experiment.workdir / run_folder.PREDICTIONS
    experiment.claim(write=True)
    files, changed = [], {}
    predict_lib.check_writable(folder)
    for fold in folds:
        held = cases.held_out(fold)
        for name, value in content.provenance(fold, held).items():
            changed[name] = "; ".join(filter(None, [changed.get(name), value]))
        for case in held:
            files.append(case)
            source = experiment.challenge.prediction_path(
                fold.workdir / run_folder.PREDICTIONS, case.id
            )
            target = experiment.challenge.prediction_path(folder, case.id)
            if source.exists():
                _link(source, target)
    files.sort(key=lambda case: case.id)
    # Every case was held out once: so evaluation and report know which cases are meant.
    splits.Split([], [case.id for case in files]).write(experiment.workdir / run_folder.SPLITS)
    score.evaluate_cases(
        experiment.challenge,
        files,
        folder,
        experiment.workdir / run_folder.EVALUATION,
        provenance={
            "cross_validation": f"{len(folds)} folds, each case by the fold that held it out",
            **experiment.provenance(),
            **changed,
        },
    )
    table = experiment.workdir / run_folder.EVALUATION / "table.md"
    say(table.read_text(encoding="utf-8"))
    evaluate.find_rules(experiment, files)
    return page.write(experiment.workdir, experiment.challenge, files)


def _link(source: Path, target: Path) -> None:
    """Makes `target` the same file or folder as `source`; a copy where a disk has no links."""
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target)
            return
        target.unlink(missing_ok=True)
        try:
            os.link(source, target)
        except OSError:
            shutil.copyfile(source, target)
