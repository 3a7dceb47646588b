"""A 2D encoder's tensors -> those of the encoder that a recipe speaks of, each accounted for."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights import channels, inflate, norms
from crossdim_jax.weights.gate import numbers_problem
from crossdim_jax.weights.merge import depth_form
from crossdim_jax.weights.paths import is_head
from crossdim_jax.weights.recipe import (
    Recipe,
    kernel_modes,
    partner,
    stem_path,
    taps,
    target_shapes,
)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An encoder's tensors and the accounts; all keys are paths.

    Attributes:
      arrays: float32 arrays, in the encoder's order; whole unless something is wrong.
      dropped: of the given tensors, those that have no place: a head, running statistics, a stem
        that is drawn anew.
      fresh: of the encoder's, those that were not carried over: drawn, or statistics that nothing
        was given for.
      modes: inflation mode of every inflated kernel.
      unknown: of the given tensors, those that the encoder has not.
      problems: what is wrong with a given tensor.
      missing: of the encoder's tensors, those that nothing was given for.
    """

    arrays: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]
    modes: Mapping[str, str]
    unknown: tuple[str, ...]
    problems: Mapping[str, str]
    missing: tuple[str, ...]


def fit(
    given: Mapping[str, np.ndarray],
    architecture: str,
    recipe: Recipe,
    *,
    stem_channels: int,
    own_channels: int,
    name: str,
) -> Fitted:
    """Adapts and inflates an encoder's 2D tensors; see `Fitted` for what may be wrong with them.

    Args:
      given: path -> array of any floating-point type, laid out as 2D weight files are.
      architecture: a key of `encoders.ENCODERS`.
      recipe: what is asked for.
      stem_channels: input channels of the given stem, which may have been adapted already.
      own_channels: those that it was trained with.
      name: the file, for messages.

    Raises:
      WeightsError: the encoder or a kernel cannot be made so, or the stem was adapted to another
        number of channels than is asked for.
    """
    targets = target_shapes(architecture, recipe)
    place = _Place(recipe, targets, kernel_modes(recipe, targets), stem_path(architecture))
    drawn = (place.stem,) if channels.draws(recipe.stem, recipe.in_channels) else ()
    if not drawn and stem_channels not in (own_channels, recipe.in_channels):
        raise WeightsError(
            f"{name}: its stem has {stem_channels} input channels, asked for "
            f"{recipe.in_channels}. Start from a file with {own_channels} "
            "input channels, or ask for as many as it has."
        )
    arrays, dropped, unknown, problems = {}, [], [], {}
    for path, array in given.items():
        head = is_head(path)
        if path in drawn or norms.drops(path, recipe.norm):
            dropped.append(path)
        elif head and not (recipe.ndim == 2 and recipe.head):
            dropped.append(path)
        elif path not in targets and not head:
            unknown.append(path)
        elif problem := place.problem(path, array, stem_channels):
            problems[path] = problem
        else:
            arrays |= place.put(path, array.astype(np.float32))
    arrays |= {path: channels.draw(targets[path], recipe.stem, recipe.seed) for path in drawn}
    measured = {
        path: np.full(shape, float(path.endswith("/var")), np.float32)
        for path, shape in targets.items()
        if path.startswith("batch_stats/") and path not in {*arrays, *problems}
    }
    measured = measured if recipe.statistics == "reestimate" else {}
    arrays |= measured
    order = (*targets, *sorted(filter(is_head, arrays)))
    return Fitted(
        arrays={path: arrays[path] for path in order if path in arrays},
        dropped=tuple(dropped),
        fresh=(*drawn, *measured),
        modes={path: mode for path, mode in place.modes.items() if path not in drawn},
        unknown=tuple(unknown),
        problems=problems,
        missing=tuple(path for path in targets if path not in {*arrays, *problems}),
    )


@dataclasses.dataclass(frozen=True)
class _Place:
    """Place of each 2D tensor in the encoder that a recipe speaks of; keys are paths."""

    recipe: Recipe
    targets: Mapping[str, tuple[int, ...]]
    modes: Mapping[str, str]
    stem: str

    def problem(self, path: str, array: np.ndarray, stem_channels: int) -> str | None:
        """Reason why a tensor cannot be put there, in terms of its own shape; None if it can."""
        if problem := numbers_problem(path, array):
            return problem
        if path not in self.targets:  # the head has no place in the encoder
            return None
        shape = self.targets[path]
        flat = (*shape[:-5], *shape[-4:]) if self._deep(path) else shape
        if path == self.stem:
            flat = (*flat[:-2], stem_channels, flat[-1])
        if array.shape != flat:
            return f"found {array.shape}, expected {flat} (channels last)"
        return None

    def put(self, path: str, array: np.ndarray) -> dict[str, np.ndarray]:
        """The encoder's tensors that a 2D one becomes: two where depth is factorised."""
        if path == self.stem:
            array = channels.adapt(array, self.recipe.in_channels, self.recipe.stem)
        if not self._deep(path):
            return {path: array}
        mode, depth = self.modes.get(path, self.recipe.inflate), taps(path, self.targets)
        *mixed, k1, k2, c_in, c_out = array.shape  # mixed: the kernels of a conditional one
        kernels = array.reshape(-1, k1, k2, c_in, c_out)
        if partner(path) in self.targets:
            planes, filters = zip(
                *(inflate.factorise(kernel, depth, mode) for kernel in kernels), strict=True
            )  # the mode's filter, the same for all
            made = {path: np.stack(planes), partner(path): filters[0]}
        else:
            made = {path: np.stack([inflate.inflate(kernel, depth, mode) for kernel in kernels])}
        made[path] = made[path].reshape(*mixed, *made[path].shape[1:])
        return made

    def _deep(self, path: str) -> bool:
        """True for a tensor that has an axis along depth."""
        return self.recipe.ndim == 3 and len(self.targets.get(path, ())) >= 5


def account(fitted: Fitted, architecture: str, recipe: Recipe) -> dict[str, Any]:
    """Part of a weight file's record that says what was made of the source, and how."""
    shapes = {path: array.shape for path, array in fitted.arrays.items()}
    return {
        "ndim": recipe.ndim,
        "inflate": recipe.inflate,
        "inflate_at": list(recipe.inflate_at),
        "depth_kernels": recipe.depth_kernels,
        **depth_form(architecture, shapes, recipe.ndim),
        "in_channels": recipe.in_channels,
        "stem": recipe.stem,
        "norm": recipe.norm,
        "statistics": norms.recorded(recipe.norm, recipe.statistics),
        "seed": recipe.seed,
        "tensors": len(fitted.arrays),
        "values": sum(array.size for array in fitted.arrays.values()),
        "fresh": list(fitted.fresh),
    }
