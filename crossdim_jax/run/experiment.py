"""An experiment: the finished parts that a config describes, which every mode works with."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import augment
from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.inference import sliding_window, whole_volume
from crossdim_jax.losses import Loss
from crossdim_jax.run import auto_fields, config_gate, from_config
from crossdim_jax.run import config as config_lib
from crossdim_jax.run.settings import Data, Inference, Training, Weights
from crossdim_jax.runtime import sharding
from crossdim_jax.storage import run_folder
from crossdim_jax.training import checkpoint, tensorboard
from crossdim_jax.training import step as train
from crossdim_jax.training.optim import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """The parts of an experiment.

    Attributes:
      config: the locked config as it was given, "auto" replaced: recorded, and not read.
      defaults: the config file's values without overrides, see `run_folder.claim`.
      workdir: the run folder.
      seed: of parameters, order of the cases, crops and dropout.
      challenge: reads, translates and scores cases.
      model: the network.
      mesh: of devices, for training; see `for_inference`.
      mesh_shape: devices along `data` and `depth` as the config says; -1 for all that there are.
      loss: for the challenge's outputs.
      augmentation: of training patches; None for none.
      optimizer: steps per epoch -> optimiser.
      data, weights, training, inference: plain values.
      planned: the plan that fields saying "auto" were just taken from; None if there is none.
    """

    config: ConfigDict
    defaults: Mapping[str, Any]
    workdir: Path
    planned: auto_fields.Planned | None = None
    seed: int
    challenge: Challenge
    model: Any
    mesh: jax.sharding.Mesh
    mesh_shape: tuple[int, int]
    loss: Loss
    augmentation: augment.Augment | None
    optimizer: Callable[[int], Optimizer]
    data: Data
    weights: Weights
    training: Training
    inference: Inference

    def cases(self, errors: list[tuple[str, str]] | None = None) -> list[CaseFiles]:
        """The labelled cases under the data root; faulty ones as `Challenge.cases` says."""
        if not self.data.root:
            raise ConfigError(
                "config.data.root is empty: say where the cases are, "
                "--config.data.root=/path/to/cases"
            )
        return self.challenge.cases(self.data.root, labelled=True, errors=errors)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one training patch as a batch of one."""
        return (1, *self.data.patch, len(self.challenge.modalities))

    def train_step(self, optimizer: Optimizer) -> train.JitStep:
        """The compiled training step."""
        step = train.make_train_step(
            self.model,
            optimizer,
            self.loss.function,
            seed=self.seed,
            accumulate=self.training.accumulate,
            activation=self.loss.activation,
            skip_nonfinite=self.training.skip_nonfinite > 0,
            augmentation=self.augmentation,
        )
        return train.jit_step(step, self.mesh)

    def predictor(
        self, *, flipped: bool
    ) -> sliding_window.SlidingWindow | whole_volume.WholeVolume:
        """Predictor of whole images: `(variables, image) -> probabilities`.

        flipped: True takes the mean over the config's test-time flips.
        """
        patch, apply = self.data.patch, self.model.apply
        flips = self.inference.flips if flipped else False
        if len(patch) == 2:
            apply, patch = sliding_window.as_slices(apply), (1, *patch)
            flips = (1, 2) if flips is True else flips
        divides = patch[0] % self.mesh.shape["depth"] == 0
        window_batch = self.inference.window_batch * self.mesh.shape["data"]
        window = sliding_window.SlidingWindow(
            apply,
            patch,
            overlap=self.inference.overlap,
            flips=flips,
            window_batch=window_batch if divides else 1,
            activation=self.challenge.activation,
            sharding=sharding.batched(self.mesh) if divides else sharding.replicated(self.mesh),
            classes=len(self.challenge.classes),
        )
        if self.inference.mode == "window":
            return window
        return whole_volume.WholeVolume(
            apply,
            self.model.check_size,
            self.mesh,
            window,
            flips=flips,
            activation=self.challenge.activation,
        )

    def for_inference(self) -> "Experiment":
        """The experiment on all devices of the config, also those that no training batch fills."""
        data, depth = self.mesh_shape
        if data == -1 and jax.process_count() == 1:  # whatever depth leaves over stays idle
            data = max(1, len(jax.devices()) // depth)
        return dataclasses.replace(self, mesh=sharding.make_mesh(data, depth))

    def provenance(self) -> dict[str, Any]:
        """Settings of prediction, for whoever reads the scores."""
        return {
            "patch": list(self.data.patch),
            "inference": self.inference.mode,
            "window_overlap": self.inference.overlap,
            "test_time_flips": self.inference.flips,
            **self.challenge.provenance(),
        }

    def trained(self) -> tuple[Any, dict[str, Any]]:
        """The weights to evaluate, on every device of the mesh, and their checkpoint's record.

        They are the best by validation, or where there are none or the config says so the last.
        """
        image = jnp.zeros(self.image_shape)
        abstract = jax.eval_shape(lambda: self.model.init(jax.random.key(0), image))
        everywhere = sharding.replicated(self.mesh)
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
            {"params": abstract["params"], "batch_stats": abstract.get("batch_stats", {})},
        )
        best = self.training.choose == "best"
        return checkpoint.load_variables(self.workdir, abstract=placed, best=best)

    def claim(self, *, write: bool) -> None:
        """Makes the run folder, or checks that it is this run's, see `run_folder.claim`."""
        run_folder.claim(self.workdir, self.config.to_dict(), defaults=self.defaults, write=write)

    def require_same_network(self) -> None:
        """Raises ConfigError if the run folder's weights are of another network."""
        run_folder.require_same_network(self.workdir, self.config.to_dict(), defaults=self.defaults)

    def alone(self, doing: str) -> contextlib.AbstractContextManager[None]:
        """Context manager: `run_folder.only_process`, in the process that writes for the run."""
        if jax.process_index() > 0:
            return contextlib.nullcontext()
        return run_folder.only_process(self.workdir, doing)


def build(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    defaults: Mapping[str, Any] | None = None,
    trains: bool = True,
    folds: bool = False,
) -> Experiment:
    """Builds an experiment; generates the phantoms of a demo's config, and plans a new training.

    Args:
      config: locked; an older one may lack fields, see `config.complete`.
      workdir: the run folder.
      defaults: the config file's values without overrides.
      trains: False for a mode that makes no step: the batch need not fit the devices then.
      folds: True plans from all cases, for a cross-validation.

    Raises:
      ConfigError: with all that is wrong, each field by its name.
      DataError: there is a field to plan, and the data cannot be read.
    """
    if not str(workdir):
        raise ConfigError("--workdir is empty: say where the run's files go, --workdir=runs/NAME")
    config_gate.check_path("--workdir", str(workdir))
    config_gate.check_sections(config.to_dict())
    config, planned = auto_fields.resolve(config, workdir, trains=trains, folds=folds)
    found, full = config_gate.Findings(config.to_dict()), config_lib.complete(config)
    parts = _parts(found, full, run_folder.description(workdir))
    _check_fits(found, parts, trains=trains)
    found.part(["data.root"], _check_workdir, workdir, parts["data"].root)
    found.refuse()
    changes = parts.pop("changes")
    parts["augmentation"] = augment.make(changes) if changes.active else None
    from_config.phantoms(full, parts["challenge"], parts["data"].root)
    return Experiment(
        config=config,
        defaults=dict(defaults or {}),
        workdir=Path(workdir),
        planned=planned,
        **parts,
    )


def _parts(found: config_gate.Findings, full: ConfigDict, described: Path | None) -> dict[str, Any]:
    """The parts of an experiment by name, None for those that cannot be made.

    described: see `from_config.challenge`.
    """
    part = found.part
    patch = part(["data.patch"], from_config.patch, full)
    epochs, optimizer = part(["optim", "train.epochs"], from_config.optimizer, full) or (None, None)
    training, shape = from_config.training(full, epochs), from_config.mesh_shape(full)
    sizes = ["challenge", "data.patch", "data.grid_tolerance_mm"]
    make = functools.partial(from_config.challenge, described=described)
    challenge = part(sizes, make, full, patch)
    classes = len(challenge.classes) if challenge else 1  # any number shows what is wrong
    batch = ["mesh", "train.batch_size", "train.accumulate"]
    return {
        "seed": from_config.seed(full),
        "data": from_config.data(full, patch),
        "weights": from_config.weights(full),
        "training": training,
        "inference": from_config.inference(full),
        "challenge": challenge,
        "model": part(["model", "mesh.depth"], from_config.model, full, classes, shape[1]),
        "mesh": part(batch, from_config.mesh, shape, training),
        "mesh_shape": shape,
        "loss": part(["train.loss"], from_config.loss, full, challenge),
        "optimizer": optimizer,
        "changes": part(["augment"], from_config.augmentation, full, patch),
    }


def _check_fits(found: config_gate.Findings, parts: Mapping[str, Any], *, trains: bool) -> None:
    """Notes parts that do not fit each other."""
    challenge, model, patch = parts["challenge"], parts["model"], parts["data"].patch
    found.part([], _check_patch, patch, model)
    if trains:
        found.part([], tensorboard.require, parts["training"].tensorboard)
        found.part([], _check_batch, parts["mesh"], model, parts["training"], patch)
    flips = parts["inference"].flips
    found.part(["inference.flips"], _check_flips, challenge, flips, patch)
    found.part([], _check_mirroring, challenge, parts["changes"], patch)
    found.part([], _check_postprocessing, challenge, parts["inference"])


def _check_workdir(workdir: str | os.PathLike, root: str) -> None:
    if root and Path(workdir).resolve() == Path(root).resolve():
        raise ConfigError(
            f"--workdir={workdir}: is config.data.root itself, and predictions would lie among the "
            "cases; choose another folder"
        )


def _check_patch(patch: tuple[int, ...], model: Any) -> None:
    try:
        model.check_size(patch)
    except ValueError as error:
        raise ConfigError(f"config.data.patch={patch}: {error}") from error


def _check_batch(
    mesh: jax.sharding.Mesh, model: Any, training: Training, patch: tuple[int, ...]
) -> None:
    sharding.check_batch(
        mesh,
        training.batch_size,
        patch,
        accumulate=training.accumulate,
        check_size=model.check_size,
    )


def _check_flips(challenge: Challenge, flips: Any, patch: tuple[int, ...]) -> None:
    """Raises ConfigError for flips that exchange right and left, see `Challenge.check_flips`."""
    if isinstance(flips, bool):  # of slices only the two axes in them, in windows of one slice
        flips = range(3 - len(patch), 3) if flips else ()
    challenge.check_flips(flips, 3, "inference.flips")


def _check_mirroring(challenge: Challenge, changes: augment.Settings, patch: tuple) -> None:
    challenge.check_flips(changes.flip, len(patch), "augment.flip")


def _check_postprocessing(challenge: Challenge, inference: Inference) -> None:
    if inference.keep_largest and not challenge.structures:
        raise ConfigError(
            f"config.inference.keep_largest=True: {challenge.name} has a postprocessing of its "
            "own, or takes none; it is for data sets of one's own"
        )
