"""An experiment built from its config: challenge, network, devices, optimiser, split.

The edge of the library, with `run_cases`, `start` and `modes`: a config is read here, and passed on
as plain arguments.
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from crossdim_jax import challenges, models, ops
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import augment, splits
from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging.case import CaseFiles
from crossdim_jax.inference import sliding_window, whole_volume
from crossdim_jax.run import config_gate
from crossdim_jax.runtime import distributed, sharding
from crossdim_jax.training import checkpoint, optim


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What every mode needs, built from the config.

    Attributes:
      config: the locked config.
      workdir: the run folder.
      challenge: reads, translates and scores cases.
      model: the network.
      mesh: of devices.
      defaults: the config file's values without overrides, see `run_folder.claim`.
    """

    config: ConfigDict
    workdir: Path
    challenge: Challenge
    model: Any
    mesh: jax.sharding.Mesh
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def cases(self, errors: list[tuple[str, str]] | None = None) -> list[CaseFiles]:
        """The labelled cases under `config.data.root`; faulty ones as `Challenge.cases` says."""
        if not self.config.data.root:
            raise ConfigError(
                "config.data.root is empty: say where the cases are, "
                "--config.data.root=/path/to/cases"
            )
        return self.challenge.cases(self.config.data.root, labelled=True, errors=errors)

    def image_shape(self) -> tuple[int, ...]:
        """Of one training patch as a batch of one."""
        return (1, *self.config.data.patch, len(self.challenge.modalities))

    def check_batch(self) -> None:
        """Raises ConfigError, naming what fits, unless the devices share batch and patch evenly."""
        options = self.config.train
        sharding.check_batch(
            self.mesh,
            options.batch_size,
            self.config.data.patch,
            accumulate=options.accumulate,
            check_size=self.model.check_size,
        )

    def provenance(self) -> dict[str, Any]:
        """How this experiment predicts, for whoever reads its scores."""
        options = self.config.inference
        return {
            "patch": list(self.config.data.patch),
            "inference": options.get("mode", "window"),
            "window_overlap": options.overlap,
            "test_time_flips": options.flips,
            **self.challenge.provenance(),
        }

    def predictor(self, *, flips: Any) -> sliding_window.SlidingWindow | whole_volume.WholeVolume:
        """Whole images as `inference.mode` says: `(variables, image) -> probabilities`."""
        options, patch = self.config.inference, tuple(self.config.data.patch)
        apply, mode = self.model.apply, options.get("mode", "window")
        if mode not in ("window", "whole"):
            raise ConfigError(f"config.inference.mode={mode!r} is unknown; known: window, whole")
        if len(patch) == 2:
            if mode == "whole":
                raise ConfigError(
                    "config.inference.mode='whole' is for volumes; slices are predicted whole "
                    "anyway, so it must be 'window'"
                )
            apply, patch = sliding_window.of_slices(apply), (1, *patch)
            flips = (1, 2) if flips is True else flips
        divides = patch[0] % self.mesh.shape["depth"] == 0
        window = sliding_window.SlidingWindow(
            apply,
            patch,
            overlap=options.overlap,
            flips=flips,
            window_batch=options.window_batch * self.mesh.shape["data"] if divides else 1,
            activation=self.challenge.activation,
            sharding=sharding.batched(self.mesh) if divides else sharding.replicated(self.mesh),
        )
        if mode == "window":
            return window
        return whole_volume.WholeVolume(
            apply,
            self.model.check_size,
            self.mesh,
            window,
            flips=flips,
            activation=self.challenge.activation,
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


def build(
    config: ConfigDict, workdir: str | os.PathLike, *, defaults: Mapping[str, Any] | None = None
) -> Experiment:
    """Builds what all modes share; generates the phantoms of a demo config.

    `defaults`: the config file's values without overrides.

    Raises:
      ConfigError: a name or a value of the config is wrong.
    """
    if not str(workdir):
        raise ConfigError("--workdir is empty: say where the run's files go, --workdir=runs/NAME")
    config_gate.check_path("--workdir", str(workdir))
    config_gate.check(config.to_dict())
    _check_workdir(workdir, config.data.get("root"))
    settings, patch = config.challenge.to_dict(), tuple(config.data.patch)
    if len(patch) == 2:  # the size that the challenge brings every slice to
        settings["size"] = patch
    challenge = challenges.get(settings.pop("name"), **settings)
    # Older configs have no such field.
    challenge.grid_tolerance_mm = config.data.get("grid_tolerance_mm")
    attributes = config.model.to_dict()
    if "ops" in attributes:
        try:
            attributes["ops"] = ops.choose(attributes["ops"], depth_shards=config.mesh.depth)
        except ValueError as error:
            raise ConfigError(f"config.model.{error}") from error
    model = models.build(attributes.pop("name"), out_channels=len(challenge.classes), **attributes)
    check_patch(patch, model)
    check_flips(config, challenge)
    if "phantoms" in config:
        if jax.process_index() == 0:
            try:
                challenge.make_phantoms(config.data.root, **config.phantoms.to_dict())
            except TypeError as error:
                raise ConfigError(f"config.phantoms: {error}") from error
        distributed.wait_for_all("phantoms")
    mesh = make_mesh(config)
    return Experiment(config, Path(workdir), challenge, model, mesh, dict(defaults or {}))


def _check_workdir(workdir: str | os.PathLike, root: str | None) -> None:
    if root and Path(workdir).resolve() == Path(root).resolve():
        raise ConfigError(
            f"--workdir={workdir}: is config.data.root itself, and predictions would lie among the "
            "cases; choose another folder"
        )


def check_patch(patch: tuple[int, ...], model: Any) -> None:
    """Raises ConfigError unless the network can take a patch of that size."""
    if len(patch) not in (2, 3):
        raise ConfigError(f"config.data.patch={patch} must be (z, y, x), or (y, x) for 2D networks")
    try:
        model.check_size(patch)
    except ValueError as error:
        raise ConfigError(f"config.data.patch={patch}: {error}") from error


def check_flips(config: ConfigDict, challenge: Challenge) -> None:
    """Raises ConfigError for flips that exchange right and left, see `Challenge.check_flips`."""
    nd = len(config.data.patch)
    flips = config.get("inference", {}).get("flips", False)
    axes = flips
    if isinstance(flips, bool):  # of slices only the two axes in them, in windows of one slice
        axes = range(3 - nd, 3) if flips else ()
    if not isinstance(axes, tuple | list | range) or any(axis not in (0, 1, 2) for axis in axes):
        raise ConfigError(
            f"config.inference.flips={flips!r} must be True, False or the axes to mirror, "
            "(z, y, x) being 0, 1 and 2, such as (0, 1)"
        )
    challenge.check_flips(axes, 3, "inference.flips")
    challenge.check_flips(config.get("augment", {}).get("flip", ()), nd, "augment.flip")


def make_mesh(config: ConfigDict) -> jax.sharding.Mesh:
    """The mesh of the config; `data=-1` takes as many devices as share the batch evenly."""
    data, depth = config.mesh.data, config.mesh.depth
    if data == -1 and depth >= 1 and jax.process_count() == 1:
        devices = len(jax.devices()) // depth
        at_once = config.train.batch_size // config.train.accumulate
        fits = [n for n in range(1, devices + 1) if at_once % n == 0]
        data = max(fits, default=1)
        if data < devices:
            distributed.say(
                f"using {data * depth} of {len(jax.devices())} devices: {at_once} samples at a "
                "time do not share more evenly; --config.train.batch_size raises that"
            )
    return sharding.make_mesh(data, depth)


def for_inference(experiment: Experiment) -> Experiment:
    """The same on all devices that `mesh.data` allows, also those no training batch fills."""
    data, depth = experiment.config.mesh.data, experiment.config.mesh.depth
    if data == -1 and jax.process_count() == 1:  # whatever depth leaves over stays idle
        data = max(1, len(jax.devices()) // depth)
    return dataclasses.replace(experiment, mesh=sharding.make_mesh(data, depth))


def augmentation(config: ConfigDict) -> augment.Augment | None:
    """What the config says of augmentation; None if it is off.

    Raises ConfigError: a setting is unknown or out of range.
    """
    settings = augment.Settings.of(config.augment.to_dict(), len(config.data.patch))
    return augment.make(settings) if settings.active else None


def epochs(config: ConfigDict) -> int:
    """The length of the training; for an exponential schedule, until its end unless it is given.

    Raises ConfigError if the config does not say.
    """
    if config.train.epochs is not None:
        return config.train.epochs
    if config.optim.schedule != "exponential":
        raise ConfigError(
            "config.train.epochs is None: only an exponential schedule says itself when it ends"
        )
    return optim.epochs_until(
        config.optim.learning_rate, config.optim.learning_rate_end, config.optim.decay_per_epoch
    )


def make_optimizer(config: ConfigDict, steps_per_epoch: int) -> optim.Optimizer:
    """The optimiser and schedule of the config."""
    settings = config.optim.to_dict()
    kind = settings.pop("schedule")
    lr, lr_end = settings.pop("learning_rate"), settings.pop("learning_rate_end")
    flat, decay = settings.pop("constant_epochs"), settings.pop("decay_per_epoch")
    length = {"steps_per_epoch": steps_per_epoch}
    schedules = {
        "constant_cosine": lambda: optim.constant_then_cosine(
            lr, lr_end, constant_epochs=flat, epochs=epochs(config), **length
        ),
        "exponential": lambda: optim.exponential(lr, lr_end, decay_per_epoch=decay, **length),
    }
    frozen = settings.pop("freeze_epochs", None)  # older configs have no such field
    settings["freeze_steps"] = None if frozen is None else round(frozen * steps_per_epoch)
    return optim.make(settings.pop("name"), schedules[kind](), **settings)


def environment(experiment: Experiment, split: splits.Split) -> str:
    """What the run runs on, in a few lines."""
    devices, config = jax.devices(), experiment.config
    mesh = " x ".join(f"{name} {size}" for name, size in experiment.mesh.shape.items())
    return "\n".join(
        [
            f"jax {jax.__version__} on {len(devices)} {devices[0].device_kind}, mesh {mesh}, "
            f"ops {experiment.model.ops}, compute {config.model.dtype}",
            f"{config.challenge.name}: {len(split.train)} cases train, "
            f"{len(split.validation)} are held out"
            + (f", {len(split.test)} are for the test in the end" if split.test else ""),
            f"run folder {experiment.workdir}",
        ]
    )
