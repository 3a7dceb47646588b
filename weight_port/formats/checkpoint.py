"""A checkpoint file of any kind that people hold: its tensors by the names that are in it.

What training programs wrap around a network's tensors is seen through: dictionaries here, common
beginnings of the names in `schemes`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.weights.tensors import read_safetensors
from weight_port.formats import keras_file, torch_file
from weight_port.formats.torch_pickle import NoTensor, Tensor

# Names under which programs keep a network's tensors, and those of its moving averages.
NESTED_UNDER = (
    *("state_dict", "model_state_dict", "model", "model_state", "net", "network", "teacher"),
    *("student", "module", "weights"),
)
EMA_UNDER = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "teacher")
DEEPEST = 3  # dictionaries around a state dict


def read(path: Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint file by the names that are in it.

    Args:
      path: .safetensors, one of `torch_file.SUFFIXES`, or one of `keras_file.SUFFIXES`.
      ema: whether moving averages of the weights are taken, where a file keeps them apart.

    Raises WeightsError, naming the file, what was found and what was expected.
    """
    if not path.exists():
        raise WeightsError(f"{path}: no such checkpoint file.")
    suffix = path.suffix.lower()
    if suffix in torch_file.SUFFIXES:
        return _of_torch(path, ema=ema)
    if suffix == ".safetensors":
        try:
            found = read_safetensors(path)[0]
        except DataError as error:
            raise WeightsError(str(error)) from error
    elif suffix in keras_file.SUFFIXES:
        found = keras_file.read(path)
    else:
        raise WeightsError(
            f"{path}: found suffix {path.suffix!r}, expected .safetensors, one of "
            f"{', '.join(torch_file.SUFFIXES)} (PyTorch) or one of "
            f"{', '.join(keras_file.SUFFIXES)} (Keras)."
        )
    if ema and not any(map(is_ema, found)):
        raise WeightsError(f"{path}: no tensor is called 'ema...'; leave --ema out.")
    return found


def _of_torch(path: Path, *, ema: bool) -> dict[str, np.ndarray]:
    content, arrays = torch_file.read(path)
    found = _unwrapped(path, content, ema=ema)
    if not _is_state_dict(found):
        raise WeightsError(
            f"{path}: found {_contents(found)}, expected a state dict (names -> tensors), plain "
            f"or under one of {', '.join(NESTED_UNDER)}."
        )
    return arrays(found)


def _unwrapped(path: Path, content: Any, *, ema: bool) -> Any:
    """The dictionary that holds the tensors, or what was found in its place."""
    if ema and (key := _first(content, EMA_UNDER)):
        content, ema = content[key], False
    for _ in range(DEEPEST):
        if not (key := _first(content, NESTED_UNDER)):
            break
        content = content[key]
    averaged = isinstance(content, Mapping) and any(map(is_ema, filter(_is_text, content)))
    if ema and not averaged:
        raise WeightsError(
            f"{path}: found {_contents(content)} and no moving averages, expected them under one "
            f"of {', '.join(EMA_UNDER)}, or tensors called 'ema...'; leave --ema out."
        )
    return content


def is_ema(name: str) -> bool:
    """True if a tensor's name says that it is a moving average of another."""
    return re.search(r"(^|[._])ema([._]|$)", name) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _first(content: Any, names: tuple[str, ...]) -> str | None:
    held = content if isinstance(content, Mapping) else {}
    return next((name for name in names if isinstance(held.get(name), Mapping)), None)


def _is_state_dict(content: Any) -> bool:
    return isinstance(content, Mapping) and all(
        _is_text(name) and isinstance(value, Tensor | NoTensor) for name, value in content.items()
    )


def _contents(content: Any) -> str:
    """Description of what was found, in few words; of a mapping its first keys and values."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = []
    for key, value in list(content.items())[:5]:
        name = repr(key) if isinstance(key, str | int | float) else f"a {type(key).__name__}"
        shown.append(f"{name[:80]}: {type(value).__name__}")
    return "{" + ", ".join(shown) + (", ...}" if len(content) > 5 else "}")
