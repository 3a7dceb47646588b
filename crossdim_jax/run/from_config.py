"""A config's fields -> plain values and the parts of an experiment.

The only module that reads them, each in one place. Configs come from `config.complete`: every field
is there.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from crossdim_jax import challenges, losses, models, ops
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.data import augment
from crossdim_jax.data.plan_length import Budget
from crossdim_jax.errors import ConfigError
from crossdim_jax.run.settings import Data, Inference, Training, Weights
from crossdim_jax.runtime import distributed, sharding
from crossdim_jax.training import optim, schedules
from crossdim_jax.weights.merge import claims


def seed(config: ConfigDict) -> int:
    """Seed of parameters, order of the cases, crops and dropout."""
    return config.seed


def patch(config: ConfigDict) -> tuple[int, ...]:
    """Size of a training patch: (z, y, x), or (y, x) of slices."""
    return tuple(config.data.patch)


def root(config: ConfigDict) -> str:
    """Folder of the cases; "" where a config leaves it to the command line."""
    return config.data.root


def data(config: ConfigDict, patch: tuple[int, ...]) -> Data:
    """The section `data`, without what the challenge takes."""
    split = config.data.split.to_dict()
    split |= {"training_cases": config.data.cases, "draw_seed": seed(config)}
    return Data(
        root=root(config),
        patch=patch,
        foreground=config.data.foreground,
        cache=config.data.cache,
        cache_dtype=config.data.cache_dtype,
        num_threads=config.data.num_threads,
        num_processes=config.data.num_processes,
        changed_cases=config.data.changed_cases,
        split={name: value for name, value in split.items() if value is not None},
    )


def weights(config: ConfigDict) -> Weights:
    """The section `weights`."""
    fields = config.weights.to_dict()
    return Weights(
        file=fields["file"],
        control=fields["control"],
        claims=claims(fields),
        ignore=fields["ignore"],
        skip=fields["skip"],
        reestimate=fields["reestimate"] or 0,
    )


def training(config: ConfigDict, epochs: int) -> Training:
    """The section `train`, without its loss; `epochs` as `optimizer` gives them."""
    return Training(
        epochs=epochs,
        steps_per_epoch=steps_per_epoch(config),
        choose=config.train.choose,
        batch_size=config.train.batch_size,
        accumulate=config.train.accumulate,
        validate_from_dice=config.train.validate_from_dice,
        validate_every_epochs=config.train.validate_every_epochs,
        log_every_steps=config.train.log_every_steps,
        checkpoint_every_steps=config.train.checkpoint_every_steps,
        keep=config.train.keep,
        keep_state=config.train.keep_state,
        early_stop_epochs=config.train.early_stop_epochs,
        skip_nonfinite=config.train.skip_nonfinite,
        tensorboard=config.train.tensorboard,
    )


def inference(config: ConfigDict) -> Inference:
    """The section `inference`."""
    return Inference(
        mode=config.inference.mode,
        overlap=config.inference.overlap,
        flips=config.inference.flips,
        window_batch=config.inference.window_batch,
        keep_largest=config.inference.keep_largest,
    )


def challenge(
    config: ConfigDict, patch: tuple[int, ...], described: Path | None = None
) -> Challenge:
    """The challenge; every slice of it is brought to a patch (y, x).

    described: the file in which the run keeps what its data set said; None if there is none.

    Raises ConfigError: a setting is unknown or has a wrong value.
    """
    settings = config.challenge.to_dict()
    if described is not None:
        settings["described"] = described
    if len(patch) == 2:
        settings["size"] = patch
    result = challenges.get(settings.pop("name"), **settings)
    result.grid_tolerance_mm = config.data.grid_tolerance_mm
    return result


def phantoms(config: ConfigDict, challenge: Challenge, root: str) -> None:
    """Generates the phantoms of a demo's config in `root`; other configs have none.

    Raises ConfigError: a setting is unknown.
    """
    if "phantoms" not in config:
        return
    if jax.process_index() == 0:
        try:
            challenge.make_phantoms(root, **config.phantoms.to_dict())
        except TypeError as error:
            raise ConfigError(f"config.phantoms: {error}") from error
    distributed.wait_for_all("phantoms")


def model(config: ConfigDict, out_channels: int, depth_shards: int) -> Any:
    """The network, for images whose depth is shared by so many devices.

    Raises ConfigError: an attribute is unknown or has a wrong value.
    """
    given = attributes(config, depth_shards)
    return _same(models.build(given.pop("name"), out_channels=out_channels, **given))


@functools.cache
def _same(model: Any) -> Any:
    """One and the same object for equal networks, so that they share their compiled programs."""
    return model


def attributes(config: ConfigDict, depth_shards: int) -> dict[str, Any]:
    """The section `model`, its operations chosen."""
    result = config.model.to_dict()
    if "ops" in result:
        result["ops"] = ops.choose(result["ops"], depth_shards=depth_shards)
    return result


def loss(config: ConfigDict, challenge: Challenge) -> losses.Loss:
    """The loss. Raises ConfigError if it is not for the challenge's outputs."""
    name = config.train.loss
    result = losses.get(name)
    if result.activation != challenge.activation:
        raise ConfigError(
            f"config.train.loss={name!r} is for {result.activation} outputs, but those of "
            f"{challenge.name} are {challenge.activation}"
        )
    return result


def augmentation(config: ConfigDict, patch: tuple[int, ...]) -> augment.Settings:
    """Settings of augmentation. Raises ConfigError: a setting is unknown."""
    return augment.Settings.of(config.augment.to_dict(), len(patch))


def optimizer(config: ConfigDict) -> tuple[int, Callable[[int], optim.Optimizer]]:
    """The epochs of the training; and its optimiser, from the number of steps per epoch.

    Without a number of epochs an exponential schedule trains until its end.
    """
    settings, epochs = _optim(config), config.train.epochs
    name, schedule = settings.pop("name"), settings.pop("schedule")
    ends = settings.pop("learning_rate"), settings.pop("learning_rate_end")
    constant_epochs, decay = settings.pop("constant_epochs"), settings.pop("decay_per_epoch")
    freeze_epochs = settings.pop("freeze_epochs")
    if epochs is None:
        epochs = schedules.epochs_until(*ends, decay)

    def make(steps_per_epoch: int) -> optim.Optimizer:
        if schedule == "exponential":
            rate = schedules.exponential(
                *ends, decay_per_epoch=decay, steps_per_epoch=steps_per_epoch
            )
        else:
            rate = schedules.constant_then_cosine(
                *ends,
                constant_epochs=constant_epochs,
                epochs=epochs,
                steps_per_epoch=steps_per_epoch,
            )
        freeze_steps = None if freeze_epochs is None else round(freeze_epochs * steps_per_epoch)
        return optim.make(name, rate, freeze_steps=freeze_steps, **settings)

    return epochs, make


def _optim(config: ConfigDict) -> dict[str, Any]:
    return config.optim.to_dict()


def rates(config: ConfigDict) -> tuple[float, float]:
    """The first and the last learning rate."""
    fields = _optim(config)
    return fields["learning_rate"], fields["learning_rate_end"]


def epochs_until(config: ConfigDict) -> int | None:
    """Epochs until an exponential schedule has come to its end; None if it does not say."""
    fields = _optim(config)
    decay = fields["decay_per_epoch"]
    if fields["schedule"] != "exponential" or not isinstance(decay, float):
        return None
    return schedules.epochs_until(*rates(config), decay)


def steps_per_epoch(config: ConfigDict) -> int | None:
    """Steps of an epoch, if the config says them."""
    return config.train.steps_per_epoch


def unused_by_schedule(config: ConfigDict) -> str:
    """The field of the section `optim` that belongs to the other schedule."""
    exponential = _optim(config)["schedule"] == "exponential"
    return "optim.constant_epochs" if exponential else "optim.decay_per_epoch"


def budget(config: ConfigDict) -> Budget:
    """The section `plan`, if there is one: what a training may take."""
    return Budget(**config.plan.to_dict()) if "plan" in config else Budget()


def mesh_shape(config: ConfigDict) -> tuple[int, int]:
    """Devices along `data` and `depth`; -1 along `data` for all that there are."""
    return config.mesh.data, config.mesh.depth


def mesh(shape: tuple[int, int], training: Training) -> jax.sharding.Mesh:
    """The mesh for training; `data=-1` takes as many devices as share a micro-batch evenly.

    Raises ConfigError if there are not enough devices.
    """
    data, depth = shape
    if data == -1 and jax.process_count() == 1:
        devices, size = len(jax.devices()) // depth, training.micro_batch_size
        data = max((n for n in range(1, devices + 1) if size % n == 0), default=1)
        if data < devices:
            distributed.say(
                f"using {data * depth} of {len(jax.devices())} devices: {size} samples at a "
                "time do not share more evenly; --config.train.batch_size raises that"
            )
    return sharding.make_mesh(data, depth)
