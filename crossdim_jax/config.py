"""Reading a config from the command line, and saying in one line what is wrong with it."""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from crossdim_jax.errors import ConfigError


def read(path: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """The config of a file, with its overrides, as launch.py reads it.

    Args:
      path: FILE or FILE:argument.
      overrides: such as "--config.model.norm=group".

    Raises:
      ConfigError: the file is missing or faulty, or an override names no field.
    """
    file = re.sub(r"(\.py):.*", r"\1", path)
    if not Path(file).is_file():
        raise ConfigError(f"{file}: no such config file")
    values = flags.FlagValues()
    arguments = ["config", f"--config={path}", *overrides]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        return values.config
    except Exception as error:  # a config is a program: it may raise anything
        raise ConfigError(f"{path}: {problem(error)}") from error


def problem(error: Exception) -> str:
    """What went wrong while flags and a config were read, in one line."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).replace("\\n", "\n")
    lines = [line.replace("\\'", "'").strip("\"' ") for line in text.strip().splitlines()]
    if "Traceback" in text:  # quoted by ml_collections; its last line says what is wrong
        return lines[-1]
    told = " ".join(line for line in lines if line)
    if isinstance(error, AttributeError | KeyError):
        return f"the config has no such field: {told}"
    return told if isinstance(error, flags.Error) else f"{type(error).__name__}: {told}"
