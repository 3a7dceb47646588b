"""A 2D weight file of ours as a source: its tensors under timm's names again. Pure numpy."""

import dataclasses
from pathlib import Path

import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import Weights, load_weights, sha256
from crossdim_jax.weights.record import required
from weight_port import families
from weight_port.source import Source, parse_name

# Fields of a record that say where its weights come from: they stay what they were.
ORIGIN = ("source", "id", "url", "file", "sha256", "licence")
# And of how it was read, where that is not the usual way.
READING = ("scheme", "prefix", "ema", "asked", "source_channels", "authors")


def read_2d(path: str | Path, purpose: str) -> Weights:
    """A weight file, if it is a 2D one.

    Args:
      path: the file.
      purpose: what needs it, for the message: "inflation".

    Raises:
      WeightsError: it cannot be read, or holds 3D weights.
    """
    weights = load_weights(path)
    ndim, name = (weights.metadata.get(field) for field in ("ndim", "id"))
    if ndim != 2:
        raise WeightsError(
            f"{path}: holds {ndim}D weights of {name}, expected 2D ones: {purpose} starts from "
            f"them. Make them with: python -m weight_port {name or 'NAME'} --ndim=2"
        )
    return weights


def torch_arrays(weights: Weights, architecture: str) -> dict[str, np.ndarray]:
    """timm's names -> arrays in PyTorch's layout: the inverse of a 2D port.

    Args:
      weights: from `read_2d`.
      architecture: whose tensors they are, a key of `encoders.ENCODERS`.

    Raises:
      WeightsError: a path that no tensor of timm's has.
    """
    family, found, strange = families.of(architecture), {}, []
    for path, array in weights.arrays.items():
        name = family.torch_name(path)
        if name is None:
            strange.append(path)
        else:
            found[name] = family.to_torch_layout(array, path)
    if strange:
        raise WeightsError(
            f"{weights.name}: found {', '.join(strange[:5])}, which no {architecture} of timm has; "
            "expected an encoder's tensors."
        )
    return found


def as_source(weights: Weights) -> Source:
    """The weights as `convert` takes them, with the record of their own source.

    Args:
      weights: from `read_2d`.

    Raises:
      WeightsError: the record does not name a network of timm's, or lacks its conventions.
    """
    record, path = weights.metadata, weights.path
    required(record, ("id", "padding", "eps", "in_channels"), weights.name)
    name = parse_name(str(record.get("id")))
    name = dataclasses.replace(name, padding=record["padding"], eps=record["eps"])
    origin = {field: record.get(field) for field in ORIGIN}
    origin |= {field: record[field] for field in READING if record.get(field) is not None}
    origin["in_channels"] = record["in_channels"]
    if path is not None:
        origin["by_way_of"] = {"file": path.name, "sha256": sha256(path)}
    return Source(name, torch_arrays(weights, name.architecture), origin)
