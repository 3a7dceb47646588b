"""Reading a config: from the command line, of any age; and in one line what is wrong with it."""

import re
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from crossdim_jax.errors import ConfigError

# Fields that came with later versions -> what was done before there was the field.
LATER: dict[str, Any] = {
    "data.root": "",
    "data.grid_tolerance_mm": None,
    "data.cases": None,
    "data.num_processes": 0,
    "data.changed_cases": "refuse",
    "data.split.test": 0.0,
    "weights.inflate_at": None,
    "weights.reestimate": 0,
    "weights.control": "",
    "augment": {"probability": 0.0},
    "optim.freeze_epochs": None,
    "train.steps_per_epoch": None,
    "train.choose": "best",
    "train.keep_state": True,
    "train.early_stop_epochs": None,
    "train.skip_nonfinite": 0,
    "train.tensorboard": False,
    "inference.mode": "window",
    "inference.flips": False,
    "inference.keep_largest": False,
}


def complete(config: ConfigDict) -> ConfigDict:
    """A copy with the fields that an older config lacks, plain values without references."""
    fields = config.to_dict()
    for field, value in LATER.items():
        *sections, name = field.split(".")
        section = fields
        for part in sections:
            section = section.setdefault(part, {})
        section.setdefault(name, value)
    return ConfigDict(fields)


def located(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command, with the files of `--config` and `--study` as `find` does it."""
    result = list(arguments)
    for index, argument in enumerate(result):
        name, equals, path = argument.partition("=")
        if name.removeprefix("-") in ("config", "-config", "study", "-study"):
            if equals:
                result[index] = f"{name}={find(path)}"
            elif index + 1 < len(result):
                result[index + 1] = find(result[index + 1])
    return result


def find(path: str) -> str:
    """Path of a config as it is, or else that of the same name which was installed.

    A wheel holds `configs/`, so that `--config=configs/brats_dxnet.py` works in any folder; what
    is in the working directory goes first. Configs import each other from `configs`.

    Args:
      path: FILE or FILE:argument.
    """
    file = re.sub(r"(\.py):.*", r"\1", path)
    parts = Path(file).parts
    if Path(file).exists() or Path(file).parent not in (Path("configs"), Path("configs/studies")):
        return path
    for installed in _installed_files():
        if installed.parts[-len(parts) :] == parts:
            where = Path(installed.locate()).resolve()
            if where.is_file():
                folder = str(where.parents[len(parts) - 1])
                if folder not in sys.path:
                    sys.path.append(folder)
                return f"{where}{path.removeprefix(file)}"
    return path


def _installed_files() -> Sequence[metadata.PackagePath]:
    try:
        return metadata.files("crossdim_jax") or ()
    except metadata.PackageNotFoundError:
        return ()


def read(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file, with its overrides, as launch.py reads it.

    Args:
      path: FILE or FILE:argument.
      overrides: such as "--config.model.norm=group".

    Raises:
      ConfigError: the file is missing or faulty, or an override names no field.
    """
    path = find(path)
    file = re.sub(r"(\.py):.*", r"\1", path)
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    values = flags.FlagValues()
    arguments = ["config", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        config = values.config
        if not hasattr(config, "to_dict"):  # asking also raises what kept the file from loading
            raise TypeError(f"get_config() returned {config!r}, expected a ConfigDict")
        return config
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(f"{path}: {problem(error)}") from error


def problem(error: Exception) -> str:
    """Message, in one line, for an error raised while flags and a config were read."""
    while isinstance(error, OSError) and isinstance(error.__cause__, OSError):
        error = error.__cause__  # ml_collections reports a file that it could not load only on use
    field = isinstance(error, AttributeError) and isinstance(error.__context__, KeyError)
    source = error.__context__ if field else error  # the other is the same in quotes
    text = str(source)
    if isinstance(source, KeyError) and source.args and (field or r"\n" in text):
        text = str(source.args[0])  # str() puts its text in quotes, with line breaks as \n
    lines = text.strip().splitlines()
    if "Traceback" in text:  # quoted by ml_collections: what is wrong follows the indented lines
        last = max(i for i, line in enumerate(lines) if line.startswith("  "))
        return _one_line(lines[last + 1 :] or lines[-1:])
    if text.startswith("Failed loading config file"):  # its last line says which and why
        return f"cannot read the config: {lines[-1].strip()}"
    if field:
        return f"the config has no such field: {_one_line(lines)}"
    message = _one_line(lines)
    if re.search(r"config\.train\.epochs=\S+: invalid literal for int", message):
        message += "; expected whole epochs, whose length config.train.steps_per_epoch may say"
    return message if isinstance(error, flags.Error) else f"{type(error).__name__}: {message}"


def _one_line(lines: Sequence[str]) -> str:
    return " ".join(line.strip() for line in lines if line.strip())
