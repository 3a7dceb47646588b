"""One experiment from its config: train, evaluate, predict, report.

The edge of the library: a config is read here, and passed on as plain arguments.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging as absl_logging
from ml_collections import ConfigDict

from crossdim_jax import (
    challenges,
    checkpoint,
    evaluate,
    inference,
    losses,
    models,
    ops,
    optim,
    params,
    run_folder,
    sharding,
    train,
)
from crossdim_jax import loop as loop_lib
from crossdim_jax.challenges import CaseFiles, Challenge
from crossdim_jax.data import cache, pipeline, splits
from crossdim_jax.errors import ConfigError, DataError, ManyErrors
from crossdim_jax.report import page
from crossdim_jax.validation import Validation

SPLITS = "splits.json"
PREDICTIONS = "predictions"
EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every mode needs, built from the config.

    Attributes:
      config: the locked config.
      workdir: the run folder.
      challenge: reads, translates and scores cases.
      model: the network.
      mesh: of devices.
    """

    config: ConfigDict
    workdir: Path
    challenge: Challenge
    model: Any
    mesh: jax.sharding.Mesh

    def cases(self) -> list[CaseFiles]:
        """The labelled cases under `config.data.root`."""
        if not self.config.data.root:
            raise ConfigError(
                "config.data.root is empty: say where the cases are, "
                "--config.data.root=/path/to/cases"
            )
        return self.challenge.cases(self.config.data.root, labelled=True)

    def image_shape(self) -> tuple[int, ...]:
        """Of one training patch as a batch of one."""
        return (1, *self.config.data.patch, len(self.challenge.modalities))

    def predictor(self, *, flips: Any) -> inference.SlidingWindow:
        """The sliding window of this experiment: `(variables, image) -> probabilities`."""
        options, patch = self.config.inference, tuple(self.config.data.patch)
        data, depth = self.mesh.shape["data"], self.mesh.shape["depth"]
        divides = options.window_batch % data == 0 and patch[0] % depth == 0
        return inference.SlidingWindow(
            self.model.apply,
            patch,
            overlap=options.overlap,
            flips=flips,
            window_batch=options.window_batch,
            sharding=sharding.batched(self.mesh) if divides else sharding.replicated(self.mesh),
        )

    def trained(self) -> tuple[Any, dict[str, Any]]:
        """The weights to evaluate, on every device of the mesh, and their checkpoint's record."""
        image = jnp.zeros(self.image_shape())
        abstract = jax.eval_shape(lambda: self.model.init(jax.random.key(0), image))
        everywhere = sharding.replicated(self.mesh)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            {"params": abstract["params"], "batch_stats": abstract.get("batch_stats", {})},
        )
        return checkpoint.load_variables(self.workdir, abstract=placed)


def build(config: ConfigDict, workdir: str | os.PathLike) -> Experiment:
    """Builds what all modes share; generates the phantoms of a demo config.

    Raises:
      ConfigError: a name or a value of the config is wrong.
    """
    if not str(workdir):
        raise ConfigError("--workdir is empty: say where the run's files go, --workdir=runs/NAME")
    patch = tuple(config.data.patch)
    if len(patch) != 3 or any(n < 32 or n % 32 for n in patch):
        raise ConfigError(
            f"config.data.patch={patch} must be three multiples of 32, such as (128, 128, 128): "
            "the network halves its input five times"
        )
    settings = config.challenge.to_dict()
    challenge = challenges.get(settings.pop("name"), **settings)
    attributes = config.model.to_dict()
    model = models.build(attributes.pop("name"), out_channels=len(challenge.regions), **attributes)
    if "phantoms" in config and jax.process_index() == 0:
        from crossdim_jax.challenges import phantom

        recipe = config.phantoms.to_dict()
        phantom.ensure(config.data.root, recipe.pop("n"), **recipe)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.depth)
    return Experiment(config, Path(workdir), challenge, model, mesh)


def run_training(experiment: Experiment) -> Path:
    """Trains, or goes on training; then evaluates the held-out cases and writes the report.

    Returns:
      the report's path; the checkpoint folder if no case was held out.
    """
    config, challenge = experiment.config, experiment.challenge
    options, first = config.train, jax.process_index() == 0
    try:
        loss = losses.get(options.loss)
    except ValueError as error:
        raise ConfigError(f"config.train.loss: {error}") from error
    files = experiment.cases()
    sharding.check_batch(
        experiment.mesh, options.batch_size, config.data.patch, accumulate=options.accumulate
    )
    weights = load_weights(experiment)
    run_folder.claim(experiment.workdir, config.to_dict(), write=first)
    split = recorded_split(experiment, files, write=first)
    say(environment(experiment, split))
    cached = cache.build(
        challenge,
        files,
        config.data.cache,
        dtype=config.data.cache_dtype,
        num_threads=config.data.num_threads,
    )
    by_id = {case.id: case for case in cached}
    training = [by_id[i] for i in split.train]
    data = pipeline.train_dataset(
        training,
        challenge,
        patch=config.data.patch,
        batch_size=options.batch_size,
        seed=config.seed,
        foreground=config.data.foreground,
        num_threads=config.data.num_threads,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    steps = loop_lib.steps_per_epoch(len(training), options.batch_size)
    optimizer = make_optimizer(config, steps)
    state = train.init_state(
        experiment.model,
        optimizer,
        experiment.image_shape(),
        experiment.mesh,
        seed=config.seed,
        weights=weights,
        skip=config.weights.skip,
    )
    step = train.make_train_step(
        experiment.model,
        optimizer,
        loss,
        seed=config.seed,
        accumulate=options.accumulate,
    )
    validation = Validation(
        [by_id[i] for i in split.validation],
        experiment.predictor(flips=False),
        challenge.encode,
        from_dice=options.validate_from_dice,
        every_epochs=options.validate_every_epochs,
    )
    result = loop_lib.fit(
        state,
        train.jit_step(step, experiment.mesh),
        data,
        workdir=experiment.workdir,
        mesh=experiment.mesh,
        regions=challenge.regions,
        total_steps=steps * options.epochs,
        steps_per_epoch=steps,
        validation=validation if split.validation else None,
        log_every_steps=options.log_every_steps,
        checkpoint_every_steps=options.checkpoint_every_steps,
        keep=options.keep,
        config=config.to_dict(),
    )
    del state, result  # frees the optimiser's memory before inference
    if not split.validation:
        return experiment.workdir / checkpoint.FOLDER
    return run_evaluation(experiment)


def run_evaluation(experiment: Experiment) -> Path:
    """Predicts and scores the held-out cases, anew if training has gone on; writes the report."""
    files = held_out(experiment)
    variables, record = experiment.trained()
    say(f"evaluating the weights of step {record['step']} on {len(files)} held-out cases")
    predict = experiment.predictor(flips=experiment.config.inference.flips)
    folder = experiment.workdir / PREDICTIONS
    # The run's own predictions are of no older weights: they are made again every time.
    result = evaluate.predict_folder(
        experiment.challenge,
        files,
        lambda image: predict(variables, image),
        folder,
        overwrite=True,
    )
    evaluate.evaluate_cases(experiment.challenge, files, folder, experiment.workdir / EVALUATION)
    say((experiment.workdir / EVALUATION / "table.md").read_text(encoding="utf-8"))
    path = run_report(experiment)
    result.raise_if_failed()
    return path


def run_prediction(
    experiment: Experiment, source: str, target: str, *, overwrite: bool = False
) -> Path:
    """Segments a folder of cases, labelled or not, with the best weights of the run.

    Args:
      experiment: of the run that was trained.
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
    folder = Path(target) if target else experiment.workdir / "predictions_new"
    failed: list[tuple[str, str]] = []
    files = experiment.challenge.cases(source, labelled=False, errors=failed)
    variables, record = experiment.trained()
    say(f"predicting {len(files)} cases with the weights of step {record['step']}")
    predict = experiment.predictor(flips=experiment.config.inference.flips)
    result = evaluate.predict_folder(
        experiment.challenge,
        files,
        lambda image: predict(variables, image),
        folder,
        overwrite=overwrite,
        errors=failed,
    )
    say(
        f"{len(result.written)} written, {len(result.skipped)} already there, "
        f"{len(result.failed)} failed: {folder}"
    )
    result.raise_if_failed()
    return folder


def run_report(experiment: Experiment) -> Path:
    """Writes `report.html` from what the run folder holds; returns its path."""
    return page.write(experiment.workdir, experiment.challenge, held_out(experiment))


# --- parts -------------------------------------------------------------------------------------


def load_weights(experiment: Experiment) -> params.Weights | None:
    """The encoder's ported weights, checked against the model; None if the config names none."""
    options = experiment.config.weights
    if not options.file:
        return None
    weights = params.load_weights(options.file)
    image = jax.ShapeDtypeStruct(experiment.image_shape(), jnp.float32)
    variables = jax.eval_shape(experiment.model.init, jax.random.key(0), image)
    params.check(
        weights.metadata,
        params.requirements(experiment.model, variables),
        name=weights.name,
        ignore=options.ignore,
    )
    say(params.describe(weights.metadata))
    return weights


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optim.Optimizer:
    """The optimiser and schedule of the config."""
    settings = config.optim.to_dict()
    schedule = optim.constant_then_cosine(
        settings.pop("learning_rate"),
        settings.pop("learning_rate_end"),
        constant_epochs=settings.pop("constant_epochs"),
        epochs=config.train.epochs,
        steps_per_epoch=steps_per_epoch,
    )
    return optim.make(settings.pop("name"), schedule, **settings)


def recorded_split(
    experiment: Experiment, files: Sequence[CaseFiles], *, write: bool
) -> splits.Split:
    """The split in the run folder, made on the first start.

    Raises:
      DataError: the data root no longer holds the cases of the recorded split.
    """
    path = experiment.workdir / SPLITS
    settings = {k: v for k, v in experiment.config.data.split.to_dict().items() if v is not None}
    fresh = splits.make(files, **settings)
    if not path.exists():
        if write:
            fresh.write(path)
        return fresh
    recorded = splits.Split.read(path)
    if recorded != fresh:
        there = {case.id for case in files}
        gone = sorted({*recorded.train, *recorded.validation} - there)
        new = sorted(there - {*recorded.train, *recorded.validation})
        raise DataError(
            f"{path}: the split of this run no longer fits the cases in "
            f"{experiment.config.data.root}: {len(gone)} gone {gone[:5]}, "
            f"{len(new)} new {new[:5]}. Put the cases back, or start a new run with another "
            "--workdir."
        )
    return recorded


def held_out(experiment: Experiment) -> list[CaseFiles]:
    """The cases of the run that were not trained on."""
    path = experiment.workdir / SPLITS
    if not path.exists():
        raise DataError(f"{path}: not found; train in this --workdir first")
    wanted = splits.Split.read(path).validation
    if not wanted:
        raise DataError(f"{path}: no case was held out, so there is nothing to evaluate")
    files = {case.id: case for case in experiment.cases()}
    if gone := [i for i in wanted if i not in files]:
        raise ManyErrors(
            f"{experiment.config.data.root}: held-out cases are missing; put them back",
            [(i, "not found") for i in gone],
        )
    return [files[i] for i in wanted]


def environment(experiment: Experiment, split: splits.Split) -> str:
    """What the run runs on, in a few lines."""
    devices, config = jax.devices(), experiment.config
    mesh = " x ".join(f"{name} {size}" for name, size in experiment.mesh.shape.items())
    return "\n".join(
        [
            f"jax {jax.__version__} on {len(devices)} {devices[0].device_kind}, mesh {mesh}, "
            f"ops {ops.choose(config.model.ops)}, compute {config.model.dtype}",
            f"{config.challenge.name}: {len(split.train)} cases train, "
            f"{len(split.validation)} are held out",
            f"run folder {experiment.workdir}",
        ]
    )


def say(text: str) -> None:
    """Prints on the first process."""
    if jax.process_index() == 0:
        print(text, flush=True)


def quiet_libraries() -> None:
    """Keeps the libraries' informational logs off the terminal."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # absl's handler serves the root logger
