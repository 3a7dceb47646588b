"""Training of an experiment: from cases and initial weights to the report."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

import jax

from crossdim_jax.data import splits
from crossdim_jax.run import cases, cost, evaluate, initial_state
from crossdim_jax.run.experiment import Experiment
from crossdim_jax.runtime import stop
from crossdim_jax.runtime.distributed import say, wait_for_all
from crossdim_jax.storage import run_folder
from crossdim_jax.training import finish, loop
from crossdim_jax.training.settings import TrainSettings
from crossdim_jax.training.validation import Validation


def run(experiment: Experiment) -> Path:
    """Trains, or goes on training; then evaluates the held-out cases and writes the report.

    Nothing is written to the run folder before all of the cases have been found good.

    Returns:
      the report's path.
    """
    first, workdir = jax.process_index() == 0, experiment.workdir
    with experiment.alone("training"):
        experiment.claim(write=False)
        if kept := run_folder.finished(workdir):
            say(f"{workdir}: has ended, its {kept['weights']} weights are evaluated")
            return _finish(experiment, splits.Split.read(workdir / run_folder.SPLITS))
        if resuming := run_folder.has_checkpoint(workdir):
            stop.enter(stop.repeatable("before the next step; the last checkpoint holds"))
        weights = None if resuming else initial_state.load_weights(experiment)
        split, training, held_out = cases.prepare_cases(experiment)
        data = cases.train_data(experiment, training, experiment.training.batch_size)
        steps_per_epoch = cases.steps_per_epoch(experiment, training)
        optimizer = experiment.optimizer(steps_per_epoch)
        say(_environment(experiment, split))
        state, record = initial_state.first_state(experiment, optimizer, training, weights)
        experiment.claim(write=first)
        if first:
            (workdir / run_folder.FINISHED).unlink(missing_ok=True)  # of checkpoints that are gone
            split.write(workdir / run_folder.SPLITS)
            if record is not None:
                run_folder.write_json(workdir / run_folder.WEIGHTS, record)
            _write_plan(experiment)
            cost.record(workdir, state, experiment.mesh.size, training_cases=split.training)
        # Also of a start that is stopped: it may be the one that compiled.
        peak = functools.partial(cost.record_peak, workdir)
        with stop.at_the_end(peak) if first else contextlib.nullcontext():
            loop.fit(
                state,
                experiment.train_step(optimizer),
                data,
                _settings(experiment, steps_per_epoch),
                mesh=experiment.mesh,
                validation=_validation(experiment, held_out) if held_out else None,
            )
    return _finish(experiment, split)


def _finish(experiment: Experiment, split: splits.Split) -> Path:
    """Evaluates a run that has ended, and if that is wanted drops what it needs no more."""
    path = evaluate.run(experiment) if split.evaluated else evaluate.report(experiment)
    if not experiment.training.keep_state and jax.process_index() == 0:
        finish.drop_state(experiment.workdir, best=experiment.training.choose == "best")
    wait_for_all("finished")
    return path


def _write_plan(experiment: Experiment) -> None:
    """Records the plan, and what the data set says of itself, for those that go on and predict."""
    if experiment.planned is not None:
        experiment.planned.write(experiment.workdir)
    described = experiment.challenge.description_record()
    if described is not None:
        path = experiment.workdir / run_folder.DATASET
        run_folder.write_json(path, described, sort_keys=False)


def _settings(experiment: Experiment, steps_per_epoch: int) -> TrainSettings:
    options = experiment.training
    return TrainSettings(
        workdir=experiment.workdir,
        regions=experiment.challenge.foreground,
        total_steps=steps_per_epoch * options.epochs,
        steps_per_epoch=steps_per_epoch,
        log_every_steps=options.log_every_steps,
        checkpoint_every_steps=options.checkpoint_every_steps,
        keep=options.keep,
        keep_best=options.choose == "best",
        early_stop_epochs=options.early_stop_epochs,
        skip_nonfinite=options.skip_nonfinite,
        tensorboard=options.tensorboard,
        config=experiment.config.to_dict(),
    )


def _validation(experiment: Experiment, held_out: list) -> Validation:
    return Validation(
        held_out,
        experiment.predictor(flipped=False),
        experiment.challenge.encode,
        from_dice=experiment.training.validate_from_dice,
        every_epochs=experiment.training.validate_every_epochs,
        activation=experiment.loss.activation,
        absent_scores=experiment.challenge.absent_scores,
    )


def _environment(experiment: Experiment, split: splits.Split) -> str:
    """Device, network and cases of the run, in a few lines."""
    devices, model = jax.devices(), experiment.model
    mesh = " x ".join(f"{name} {size}" for name, size in experiment.mesh.shape.items())
    tested = f", {len(split.test)} are for the test in the end" if split.test else ""
    return "\n".join(
        [
            f"jax {jax.__version__} on {len(devices)} {devices[0].device_kind}, mesh {mesh}, "
            f"ops {model.ops}, compute {jax.numpy.dtype(model.dtype).name}",
            f"{experiment.challenge.name}: {split.training} cases train, "
            f"{len(split.validation)} are held out{tested}",
            f"run folder {experiment.workdir}",
            *_sides(experiment.challenge.sides),
        ]
    )


def _sides(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Note that classes of two sides forbid mirroring; empty where there are none."""
    if not pairs:
        return []
    named = "; ".join(" and ".join(pair) for pair in pairs[:3]) + "; ..." * (len(pairs) > 3)
    return [
        "mirroring along x is off, in augmentation and in test-time flips, as it makes one of the "
        f"other of: {named}"
    ]
