"""A source's tensors -> an encoder's, with every tensor of both sides accounted for."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from crossdim_jax.errors import WeightsError, first_of
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.fit import Fitted, fit
from crossdim_jax.weights.paths import is_head
from crossdim_jax.weights.recipe import Recipe, target_shapes
from weight_port import families, rename
from weight_port.source import Source


@dataclasses.dataclass(frozen=True)
class Converted:
    """An encoder's tensors and the accounts of both sides.

    Attributes:
      fitted: the encoder's side.
      used, unused: names of source tensors.
    """

    fitted: Fitted
    used: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Path -> float32 array, ready for `save_weights`."""
        return self.fitted.arrays

    @property
    def fresh(self) -> tuple[str, ...]:
        """Paths of the encoder's tensors that were not carried over, see `Fitted`."""
        return self.fitted.fresh

    @property
    def modes(self) -> Mapping[str, str]:
        """Path -> inflation mode of every inflated kernel."""
        return self.fitted.modes


def check_shapes(weights: Weights, architecture: str, recipe: Recipe) -> None:
    """Raises WeightsError unless a file holds an encoder's tensors, as its record says it does.

    To be called before the network is run, or built of sizes that only the record speaks of. A head
    is not looked at.
    """
    targets = target_shapes(architecture, recipe)
    found = {path: array.shape for path, array in weights.arrays.items() if not is_head(path)}
    problems = [
        f"{path}: found {found.get(path, 'nothing')}, expected {targets.get(path, 'nothing')}"
        for path in sorted(found.keys() | targets.keys())
        if found.get(path) != targets.get(path)
    ]
    if problems:
        raise WeightsError(
            f"{weights.name}: does not hold the {architecture} that its record speaks of:\n  "
            f"{first_of(problems)}\nMake the file again with python -m weight_port."
        )


def convert(source: Source, recipe: Recipe) -> Converted:
    """Renames, adapts and inflates; total or loud.

    Every source tensor is used or listed as unused, every target tensor is filled or listed as
    fresh.

    Raises:
      WeightsError: listing everything that does not fit, at once.
    """
    architecture = source.name.architecture
    family, targets = families.of(architecture), target_shapes(architecture, recipe)
    names = [name for name in source.arrays if not rename.UNUSED.fullmatch(name)]
    paths = {name: family.flax_path(name) for name in names}
    given = {
        path: family.to_flax_layout(source.arrays[name], path, targets.get(path))
        for name, path in paths.items()
        if path is not None
    }
    fitted = fit(
        given,
        architecture,
        recipe,
        stem_channels=source.in_channels,
        own_channels=source.own_channels,
        name=source.origin["file"],
    )
    used, unused, problems = [], [], []
    for name, array in source.arrays.items():
        path = paths.get(name)
        if name not in paths or path in fitted.dropped:
            unused.append(name)
        elif path is None or path in fitted.unknown:
            problems.append(f"unknown in the source: {name} {array.shape}")
        else:
            used.append(name)
            problems += [f"{name}: {fitted.problems[path]}"] if path in fitted.problems else []
    problems += [f"missing in the source: {path}" for path in fitted.missing]
    _refuse(source, problems)
    return Converted(fitted, tuple(used), (*unused, *source.others))


def _refuse(source: Source, problems: Sequence[str]) -> None:
    """Raises WeightsError listing the problems, if there are any, and what the file resembles."""
    if not problems:
        return
    origin = source.origin["file"] or source.origin["id"]
    raise WeightsError(
        f"{origin} is not a complete {source.name.model} ({len(problems)} problems):\n  "
        + "\n  ".join(problems)
        + "\nIs this a checkpoint of another architecture? Give the timm name it was made for."
        + (f"\n{source.resembles()}" if source.resembles else "")
    )
