"""Gate for configs: every field's range, names of closed sets, and what must fit together.

All that is wrong is reported at once, before anything is read. Fields that a config lacks are left
alone: older ones have fewer.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from crossdim_jax import challenges, losses, models, ops
from crossdim_jax.data import augment, cache
from crossdim_jax.errors import ConfigError, unknown_name
from crossdim_jax.models import encoders, layers
from crossdim_jax.models.conv import DEPTH_PADDINGS
from crossdim_jax.ranges import problems, refuse
from crossdim_jax.training import optim
from crossdim_jax.weights.control import CONTROLS

SECTIONS = ("challenge", "model", "data", "train")  # without which it is not an experiment's
SCHEDULES = ("constant_cosine", "exponential")
PATHS = ("data.root", "data.cache", "weights.file")
# Numbers in one channel of a batch: a patch of 10^9 voxels a side is a slip, and asking for it
# would take the machine down.
MOST_VOXELS = 2**34

# Field -> the names that it may have; None where the network's variant may say it.
CHOICES: dict[str, Collection[str | None]] = {
    "challenge.name": challenges.CHALLENGES,
    "data.cache_dtype": cache.DTYPES,
    "data.changed_cases": ("refuse", "accept"),
    "data.split.kind": ("holdout", "kfold", "fixed", "official", "all"),
    "inference.mode": ("window", "whole"),
    "model.name": models.NETWORKS,
    "model.encoder": encoders.ENCODERS,
    "model.norm": (*layers.NORMS, None),
    "model.padding": (*ops.PADDINGS, None),
    "model.depth_padding": (*DEPTH_PADDINGS, None),
    "model.dtype": ("float32", "bfloat16", "float16"),
    "model.ops": ops.MODES,
    "optim.name": optim.RULES,
    "optim.schedule": SCHEDULES,
    "train.choose": ("best", "last"),
    "train.loss": losses.LOSSES,
    "weights.control": ("", *CONTROLS),
}


class Findings:
    """Problems of a config, gathered while the parts of an experiment are made of it.

    Args:
      config: as plain dicts. Its fields are looked at at once, each by itself and then together.
    """

    def __init__(self, config: Mapping[str, Any]):
        values = flatten_dict(dict(config), sep=".")
        found = [*problems(values, augment.RANGES), *_names(values), *_paths(values)]
        found += _together(values, {field for field, _ in found})
        self._wrong = {field for field, _ in found}
        self._texts = [text for _, text in found]

    def part[T](self, fields: Sequence[str], make: Callable[..., T], *args: Any) -> T | None:
        """Makes the part `make(*args)`; None if it cannot be made, and its ConfigError is kept.

        Args:
          fields: that it is made of, or their sections. If one is wrong, or a part among `args` is
            None, that has been said, and the part is not tried.
          make: raises ConfigError.
        """
        for wrong in self._wrong:
            if any(f"{wrong}.".startswith(f"{field}.") for field in fields):
                return None
        if any(arg is None for arg in args):
            return None
        try:
            return make(*args)
        except ConfigError as error:
            self._texts.append(str(error))
            return None

    def refuse(self) -> None:
        """Raises ConfigError with all that was found, if anything was."""
        refuse(self._texts)


def check_sections(config: Mapping[str, Any]) -> None:
    """Raises ConfigError unless the config has the sections of an experiment."""
    if absent := [name for name in SECTIONS if name not in config]:
        raise ConfigError(f"the config has no {', '.join(absent)}; is it an experiment's?")


def check_fields(config: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming every field that is wrong, its value and what is expected.

    For configs that need not be an experiment's, such as those that porting takes.
    """
    Findings(config).refuse()


def check_path(name: str, path: str) -> None:
    """Raises ConfigError if a path cannot be one; `name` is the flag or the field that says it."""
    if "\0" in path:
        raise ConfigError(f"{name}={path!r}: holds a NUL character, which no path may; remove it")


def _names(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field, known in CHOICES.items():
        value = values.get(field, next(iter(known)))
        if value not in list(known):  # as a list, also of what cannot be a key
            yield field, unknown_name(f"config.{field}", value, known)


def _paths(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for field in PATHS:
        if not isinstance(value := values.get(field, ""), str):
            yield field, f"config.{field}={value!r}: expected a path in quotes"
        else:
            try:
                check_path(f"config.{field}", value)
            except ConfigError as error:
                yield field, str(error)


# --------------------------------------------------------------------------- what fits together


def _together(values: Mapping[str, Any], wrong: Collection[str]) -> Iterator[tuple[str, str]]:
    """Problems, as (field, text), between fields that are each there and right by themselves."""
    for fields, rule in RULES.items():
        if all(field in values and field not in wrong for field in fields):
            if text := rule(*(values[field] for field in fields)):
                yield fields[0], text


def _learning_rates(end: float, start: float) -> str | None:
    if end <= start:
        return None
    return f"config.optim.learning_rate_end={end}: expected at most learning_rate, which is {start}"


def _exponential(schedule: str, end: float, decay: float) -> str | None:
    if schedule != "exponential" or (end > 0 and decay < 1):
        return None
    return (
        f"config.optim.schedule='exponential' with learning_rate_end={end} and "
        f"decay_per_epoch={decay}: it would never come to its end; expected an end above 0 and a "
        "decay below 1"
    )


def _epochs(epochs: int | None, schedule: str) -> str | None:
    if epochs is not None or schedule == "exponential":
        return None
    return "config.train.epochs=None: only an exponential schedule says itself when it ends"


def _nadam(decay: float | None, name: str) -> str | None:
    if name != "adam" or decay is None:
        return None
    return f"config.optim.schedule_decay={decay}: belongs to nadam; set it to None for adam"


def _freezing(epochs: float | None, freeze: Collection[str]) -> str | None:
    if epochs is None or freeze:
        return None
    return f"config.optim.freeze_epochs={epochs}: expected patterns in config.optim.freeze as well"


def _fold(fold: int, folds: int, kind: str) -> str | None:
    if kind != "kfold" or fold < folds:
        return None
    return f"config.data.split.fold={fold}: expected 0 to {folds - 1}, as folds is {folds}"


def _fixed(kind: str, validation: Collection[str] | None) -> str | None:
    if kind != "fixed" or validation:
        return None
    return "config.data.split.kind='fixed': expected case ids in config.data.split.validation"


def _test(test: float, kind: str) -> str | None:
    if not test or kind != "fixed":
        return None
    return (
        f"config.data.split.test={test}: with kind='fixed' the config says itself which cases are "
        "held out; expected 0, or another kind"
    )


def _batch(batch_size: int, accumulate: int) -> str | None:
    if batch_size % accumulate == 0:
        return None
    fits = -(-batch_size // accumulate) * accumulate
    return (
        f"config.train.batch_size={batch_size}: expected a multiple of accumulate, which is "
        f"{accumulate}, such as {fits}"
    )


def _slices(foreground: float, patch: Collection[int]) -> str | None:
    if len(patch) != 2 or not foreground:
        return None
    return f"config.data.foreground={foreground}: slices are whole, so it must be 0"


def _whole(mode: str, patch: Collection[int]) -> str | None:
    if len(patch) != 2 or mode != "whole":
        return None
    return (
        "config.inference.mode='whole' is for volumes; slices are predicted whole anyway, so it "
        "must be 'window'"
    )


def _axes(flip: Collection[int], patch: Collection[int]) -> str | None:
    if all(axis < len(patch) for axis in flip):
        return None
    return f"config.augment.flip={flip}: a patch has the axes 0 to {len(patch) - 1}"


def _memory(patch: Collection[int], batch_size: int) -> str | None:
    if (voxels := math.prod(patch) * batch_size) <= MOST_VOXELS:
        return None
    return (
        f"config.data.patch={patch} with config.train.batch_size={batch_size}: one channel of a "
        f"batch would have {voxels:.3g} voxels, {4 * voxels / 2**30:.3g} GiB; expected at most "
        f"{MOST_VOXELS}"
    )


def _time(minutes: float | None, speed: float | None) -> str | None:
    if minutes is None or speed is not None:
        return None
    return (
        f"config.plan.minutes={minutes}: how many steps these hold follows from "
        "config.plan.voxels_per_second, which --mode=plan --budget_gib=GIB measures; or set "
        "config.plan.steps"
    )


def _folders(cache_folder: str, root: str) -> str | None:
    if not root or Path(root).resolve() != Path(cache_folder).resolve():
        return None
    return (
        f"config.data.cache={cache_folder!r}: is config.data.root itself, and decoded cases would "
        "lie among those they are made of; choose another folder"
    )


def _cache(folder: str) -> str | None:
    return None if folder else "config.data.cache is empty: say where decoded cases may lie"


def _control(control: str, file: str) -> str | None:
    if not control or file:
        return None
    return (
        f"config.weights.control={control!r}: is made of a 2D weight file, but config.weights.file "
        "is empty; name one, or leave the control out to start from random parameters"
    )


def _once(flips: Any) -> str | None:
    if isinstance(flips, bool | int) or len(set(flips)) == len(flips):
        return None
    return f"config.inference.flips={tuple(flips)}: each axis once is expected"


# Fields -> what is wrong between them, or None; the first is the field that the text names.
RULES: dict[tuple[str, ...], Callable[..., str | None]] = {
    ("optim.learning_rate_end", "optim.learning_rate"): _learning_rates,
    ("optim.schedule", "optim.learning_rate_end", "optim.decay_per_epoch"): _exponential,
    ("train.epochs", "optim.schedule"): _epochs,
    ("optim.schedule_decay", "optim.name"): _nadam,
    ("optim.freeze_epochs", "optim.freeze"): _freezing,
    ("data.split.fold", "data.split.folds", "data.split.kind"): _fold,
    ("data.split.kind", "data.split.validation"): _fixed,
    ("data.split.test", "data.split.kind"): _test,
    ("train.batch_size", "train.accumulate"): _batch,
    ("data.foreground", "data.patch"): _slices,
    ("augment.flip", "data.patch"): _axes,
    ("inference.mode", "data.patch"): _whole,
    ("data.patch", "train.batch_size"): _memory,
    ("plan.minutes", "plan.voxels_per_second"): _time,
    ("data.cache", "data.root"): _folders,
    ("data.cache",): _cache,
    ("weights.control", "weights.file"): _control,
    ("inference.flips",): _once,
}
