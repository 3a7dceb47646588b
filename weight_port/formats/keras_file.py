"""Keras' weight files, all three kinds, through h5py alone.

Tensors are called `LAYER.NAME`, with Keras' names of both: `block2a_expand_conv.kernel`,
`stem_bn.moving_mean`. A `.weights.h5` of Keras 3 has no layers' names, but their class and number:
`conv2d_12.kernel`.
"""

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.storage.reading import read_bytes

SUFFIXES = (".h5", ".hdf5", ".keras")
MORE = 4  # what compression may make of a file, in times its size
# The number of a variable in a layer of Keras 3 -> its name, by how many the layer has and whether
# the first is a kernel.
_KERNEL, _NORM = ("kernel", "bias"), ("gamma", "beta", "moving_mean", "moving_variance")


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a Keras file, in Keras' layout: kernels (k, k, in, out).

    Raises WeightsError, naming the file, if it is missing, damaged, or speaks of other files.
    """
    try:
        content = read_bytes(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    try:
        if path.suffix.lower() != ".keras":
            return _tensors(path, content)
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MORE * len(content):
                raise ValueError("it unpacks to more than weights do")
            names = _layer_names(json.loads(archive.read("config.json")))
            found = _tensors(path, archive.read("model.weights.h5"))
        return {_renamed(name, names): array for name, array in found.items()}
    except WeightsError:
        raise
    except Exception as error:  # of a damaged file, nearly anything
        text = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{path}: cannot be read as a Keras file ({type(error).__name__}: {text}); it is "
            "damaged, cut short, or of another kind. Copy or download it again."
        ) from error


OPTIMIZER = ("optimizer_weights", "optimizer")  # groups beside those of the model


def _tensors(path: Path, content: bytes) -> dict[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise WeightsError(
            f"{path}: Keras' files need h5py, which is not installed: pip install "
            "'crossdim_jax[keras]'"
        ) from error
    found: dict[str, np.ndarray] = {}
    with h5py.File(io.BytesIO(content), "r") as file:
        left = MORE * len(content)
        for place, dataset in _datasets(h5py, file):
            if place.split("/")[1] in OPTIMIZER:  # its moments are called as the weights are
                continue
            left -= dataset.nbytes
            if left < 0:
                raise ValueError("it unpacks to more than weights do")
            if dataset.is_virtual or dataset.external:
                raise ValueError(f"{place} lies in another file")
            if dataset.dtype.kind in "biuf":
                layer, name = _called(place)
                if (key := f"{layer}.{name}") in found:
                    raise ValueError(f"two tensors are called {key}; save the inner model alone")
                found[key] = np.asarray(dataset[()])
    return _named(found)


def _datasets(h5py: Any, group: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yields (path, dataset) of all in a group; links to elsewhere are an error."""
    if depth > 20:
        raise ValueError("groups within groups without end")
    for key in group:
        if not isinstance(group.get(key, getlink=True), h5py.HardLink):
            raise ValueError(f"{place}/{key} is a link")
        item = group[key]
        if isinstance(item, h5py.Dataset):
            yield f"{place}/{key}", item
        else:
            yield from _datasets(h5py, item, f"{place}/{key}", depth + 1)


def _called(place: str) -> tuple[str, str]:
    """Layer and name of a tensor: "/stem_conv/stem_conv/kernel:0", "/layers/conv2d/vars/0"."""
    *groups, name = place.removeprefix("/").split("/")
    if groups and groups[-1] == "vars":
        groups = groups[:-1]
    name = re.sub(r":\d+$", "", name)
    return (groups[-1] if groups else ""), {"depthwise_kernel": "kernel"}.get(name, name)


def _named(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """With names in place of the numbers that Keras 3 gives a layer's variables."""
    counts: dict[str, int] = {}
    for name in arrays:
        layer, _, number = name.rpartition(".")
        counts[layer] = counts.get(layer, 0) + number.isdigit()
    found = {}
    for name, array in arrays.items():
        layer, _, number = name.rpartition(".")
        first = arrays.get(f"{layer}.0")
        names = _NORM if first is not None and first.ndim == 1 and counts[layer] == 4 else _KERNEL
        known = number.isdigit() and first is not None and int(number) < len(names)
        found[f"{layer}.{names[int(number)]}" if known else name] = array
    return found


def _layer_names(config: Any) -> dict[str, str]:
    """Class and number of every layer of a model, as Keras 3 counts them -> the layer's name."""
    counts: dict[str, int] = {}
    names = {}
    for layer in config["config"]["layers"]:
        kind = snake(str(layer["class_name"]))
        number = counts[kind] = counts.get(kind, -1) + 1
        names[f"{kind}_{number}" if number else kind] = str(layer["config"]["name"])
    return names


def snake(name: str) -> str:
    """Keras' name for the first layer of a class: "BatchNormalization" -> "batch_normalization"."""
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _renamed(name: str, names: dict[str, str]) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{names.get(layer, layer)}.{leaf}"
