"""The network that a checkpoint of unknown kind most resembles, for error messages."""

from collections.abc import Iterator, Mapping

import numpy as np

from crossdim_jax.models import encoders
from weight_port import families
from weight_port.recognise import Place, places
from weight_port.shapes import torch_shapes

SHOWN = 3  # differences
COMPARED = 8  # networks of equally many names of which the shapes are compared, too


def resemblance(arrays: Mapping[str, np.ndarray]) -> str:
    """A sentence on the network and the names that a file most resembles, and first differences.

    arrays: of the file, by its own names.
    """
    found = sorted(_candidates(arrays), key=lambda c: -_overlap(arrays, c[1]))
    if not found:
        names = ", ".join(list(arrays)[:SHOWN])
        return f"It holds {len(arrays)} tensors ({names}, ...), of none of the networks known here."
    most = _overlap(arrays, found[0][1])
    nearest = [each for each in found if _overlap(arrays, each[1]) == most][:COMPARED]
    compared = [(list(_differences(arrays, *each)), *each) for each in nearest]
    different, architecture, place = min(compared, key=lambda row: len(row[0]))
    listed = "\n  ".join(different[:SHOWN]) or "none"
    return (
        f"It most resembles {architecture} in {place}: {place.hits} of its {len(place.names)} "
        f"tensors are there. First differences of {len(different)}:\n  {listed}"
    )


def _candidates(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Place]]:
    for architecture in encoders.ENCODERS:
        for scheme in families.of(architecture).SCHEMES:
            for place in places(arrays, scheme, architecture):
                yield architecture, place


def _overlap(arrays: Mapping[str, np.ndarray], place: Place) -> float:
    """Share of the names that both sides have."""
    inside = sum(name.startswith(place.prefix) for name in arrays if "num_batches" not in name)
    return place.hits / (len(place.names) + inside - place.hits)


def _differences(
    arrays: Mapping[str, np.ndarray], architecture: str, place: Place
) -> Iterator[str]:
    """Yields a sentence for every tensor of the body that is missing, of another shape, or new."""
    shapes = torch_shapes(architecture)
    for name, target in place.names.items():
        array = arrays.get(f"{place.prefix}{name}")
        if target not in shapes:
            continue
        if array is None:
            yield f"{place.prefix}{name}: missing"
            continue
        shape = place.scheme.to_torch(target, array).shape
        if shape != shapes[target] and (name != next(iter(place.names)) or shape[2:] != (3, 3)):
            yield f"{place.prefix}{name}: found {shape}, expected {shapes[target]}"
    for name in arrays:
        inner = name.removeprefix(place.prefix)
        if name.startswith(place.prefix) and inner not in place.names:
            if "num_batches_tracked" not in name:
                yield f"{name}: unknown"
