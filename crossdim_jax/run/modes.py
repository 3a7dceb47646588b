"""What can be done with an experiment: train, evaluate, predict, report."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import jax

from crossdim_jax import losses
from crossdim_jax.data import pipeline
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.evaluation import predict as predict_lib
from crossdim_jax.evaluation import score
from crossdim_jax.report import page
from crossdim_jax.run import cases, content, cost, ensemble, initial_state
from crossdim_jax.run import experiment as experiment_lib
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say, wait_for_all
from crossdim_jax.storage import run_folder
from crossdim_jax.training import loop, optim
from crossdim_jax.training import step as train
from crossdim_jax.training.validation import Validation


@contextlib.contextmanager
def _alone(experiment: Experiment, doing: str) -> Iterator[None]:
    """`run_folder.only_process`, held by the process that writes for all of the run."""
    if jax.process_index() > 0:
        yield
        return
    with run_folder.only_process(experiment.workdir, doing):
        yield


def run_training(experiment: Experiment) -> Path:
    """Trains, or goes on training; then evaluates the held-out cases and writes the report.

    Nothing is written to the run folder before all of the config and all of the cases have been
    found good.

    Returns:
      the report's path.
    """
    with _alone(experiment, "training"):
        held_out = _train(experiment)
    return run_evaluation(experiment) if held_out else run_report(experiment)


def _train(experiment: Experiment) -> bool:
    """Trains; returns whether there are held-out cases."""
    config, options = experiment.config, experiment.config.train
    loss, epochs = loss_of(experiment), experiment_lib.epochs(config)
    experiment_lib.augmentation(config)  # raises before anything is read
    experiment.check_batch()
    predict = experiment.predictor(flips=False)
    claim = functools.partial(
        run_folder.claim, experiment.workdir, config.to_dict(), defaults=experiment.defaults
    )
    claim(write=False)
    if resuming := run_folder.has_checkpoint(experiment.workdir):
        stop.enter(stop.repeatable("before the next step; the last checkpoint holds"))
    weights = None if resuming else initial_state.load_weights(experiment)

    split, training, held_out_cases = cases.prepare_cases(experiment)
    data = cases.train_data(experiment, training, options.batch_size)
    shown = len(pipeline.elements(training, config.data.patch))
    steps = loop.steps_per_epoch(shown, options.batch_size)
    optimizer = experiment_lib.make_optimizer(config, steps)
    say(experiment_lib.environment(experiment, split))
    state, record = initial_state.first_state(experiment, optimizer, training, weights)
    validation = Validation(
        held_out_cases,
        predict,
        experiment.challenge.encode,
        from_dice=options.validate_from_dice,
        every_epochs=options.validate_every_epochs,
        activation=loss.activation,
        absent_scores=experiment.challenge.absent_scores,
    )
    first = jax.process_index() == 0
    claim(write=first)
    if first:
        split.write(experiment.workdir / run_folder.SPLITS)
        if record is not None:
            run_folder.write_json(experiment.workdir / run_folder.WEIGHTS, record)
        cost.record(experiment.workdir, state, experiment.mesh.size)
    peak = functools.partial(cost.record_peak, experiment.workdir)
    # Also of a start that is stopped: it may be the one that compiled.
    with stop.at_the_end(peak) if first else contextlib.nullcontext():
        loop.fit(
            state,
            train.compiled_first(make_step(experiment, optimizer, loss)),
            data,
            workdir=experiment.workdir,
            mesh=experiment.mesh,
            regions=experiment.challenge.foreground,
            total_steps=steps * epochs,
            steps_per_epoch=steps,
            validation=validation if held_out_cases else None,
            log_every_steps=options.log_every_steps,
            checkpoint_every_steps=options.checkpoint_every_steps,
            keep=options.keep,
            early_stop_epochs=options.early_stop_epochs,
            config=config.to_dict(),
            skip_nonfinite=options.get("skip_nonfinite", 0),
        )
    return bool(held_out_cases)


def loss_of(experiment: Experiment) -> losses.Loss:
    """The loss of the config. Raises ConfigError if it is unknown or not for these outputs."""
    name, challenge = experiment.config.train.loss, experiment.challenge
    try:
        loss = losses.get(name)
    except ValueError as error:
        raise ConfigError(f"config.train.loss: {error}") from error
    if loss.activation != challenge.activation:
        raise ConfigError(
            f"config.train.loss={name!r} is for {loss.activation} outputs, but those of "
            f"{experiment.config.challenge.name} are {challenge.activation}"
        )
    return loss


def make_step(experiment: Experiment, optimizer: optim.Optimizer, loss: losses.Loss) -> train.Step:
    """The compiled training step of an experiment."""
    config = experiment.config
    step = train.make_train_step(
        experiment.model,
        optimizer,
        loss.function,
        seed=config.seed,
        accumulate=config.train.accumulate,
        activation=loss.activation,
        skip_nonfinite=config.train.get("skip_nonfinite", 0) > 0,
        augmentation=experiment_lib.augmentation(config),
    )
    return train.jit_step(step, experiment.mesh)


def run_evaluation(experiment: Experiment) -> Path:
    """Predicts and scores the held-out cases, and writes the report; returns the report's path.

    Raises:
      ManyErrors: some cases could not be predicted; the others are scored.
    """
    stop.enter(stop.repeatable("evaluating"))
    with _alone(experiment, "evaluating"):
        return _evaluate(experiment)


def _evaluate(experiment: Experiment) -> Path:
    experiment = experiment_lib.for_inference(experiment)
    config, first = experiment.config, jax.process_index() == 0
    run_folder.require_same_network(
        experiment.workdir, config.to_dict(), defaults=experiment.defaults
    )
    files = cases.held_out(experiment)
    if not files:
        raise DataError(
            f"{experiment.workdir}: no case was held out from this training, so there is nothing "
            "to evaluate; --mode=predict segments a folder of cases"
        )
    variables, record = experiment.trained()
    say(f"evaluating the weights of step {record['step']} on {len(files)} held-out cases")
    predict = experiment.predictor(flips=config.inference.flips)
    folder = experiment.workdir / run_folder.PREDICTIONS
    result = predict_lib.predict_folder(
        experiment.challenge,
        files,
        lambda image: predict(variables, image),
        folder,
        overwrite=True,  # those that are there may be of older weights
        write=first,
        progress=first,
    )
    wait_for_all("predictions")
    if first:
        score.evaluate_cases(
            experiment.challenge,
            files,
            folder,
            experiment.workdir / run_folder.EVALUATION,
            failed=result.failed,
            provenance={
                "checkpoint_step": record["step"],
                **experiment.provenance(),
                **content.provenance(experiment, files),
            },
        )
        table = experiment.workdir / run_folder.EVALUATION / "table.md"
        say(table.read_text(encoding="utf-8"))
    path = _report(experiment)
    result.raise_if_failed()
    return path


def run_prediction(
    experiment: Experiment, source: str, target: str, *, overwrite: bool = False
) -> Path:
    """Segments a folder of cases, labelled or not, with the best weights of the run.

    In the folder of a cross-validation: with those of all folds, by their mean probabilities.

    Args:
      experiment: of the run, or of the folds, that were trained.
      source: folder of cases in the challenge's layout.
      target: folder for `{case}.nii.gz`; "" for `predictions_new` in the run folder.
      overwrite: predict again what is already there.

    Returns:
      the folder written to.

    Raises:
      ManyErrors: some cases failed; the others are written.
    """
    if not source:
        raise ConfigError("--mode=predict needs --input=FOLDER, a folder of cases")
    stop.enter(stop.repeatable("predicting"))
    experiment = experiment_lib.for_inference(experiment)
    folder = Path(target) if target else experiment.workdir / "predictions_new"
    failed: list[tuple[str, str]] = []
    predict, weights = ensemble.predictor(experiment)
    files = experiment.challenge.cases(source, labelled=False, errors=failed)
    say(f"predicting {len(files)} cases with {weights}")
    result = predict_lib.predict_folder(
        experiment.challenge,
        files,
        predict,
        folder,
        overwrite=overwrite,
        write=jax.process_index() == 0,
        export=True,
        errors=failed,
        progress=jax.process_index() == 0,
    )
    say(
        f"{len(result.written)} written, {len(result.skipped)} already there, "
        f"{len(result.failed)} failed: {folder}"
    )
    result.raise_if_failed()
    return folder


def run_report(experiment: Experiment) -> Path:
    """Writes `report.html` from what the run folder holds; returns its path."""
    stop.enter(stop.repeatable("reporting"))
    with _alone(experiment, "evaluating"):
        return _report(experiment)


def _report(experiment: Experiment) -> Path:
    files = cases.held_out(experiment)
    if jax.process_index() > 0:
        return experiment.workdir
    return page.write(experiment.workdir, experiment.challenge, files)
