"""A source's tensors -> an encoder's, with every tensor of both sides accounted for."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import params
from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from weight_port import channels, inflate, norms, rename
from weight_port.source import Source


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an encoder's weights are made of a source's.

    Attributes:
      ndim: spatial rank, 2 or 3.
      in_channels: input channels of the stem.
      norm: "batch", "instance" or "group".
      inflate: a key of `inflate.INFLATE`; None in 2D.
      stem: one of `channels.POLICIES`.
      seed: of a stem that is drawn anew.
    """

    ndim: int
    in_channels: int
    norm: str
    inflate: str | None
    stem: str
    seed: int = 0

    def __post_init__(self):
        """Raises WeightsError if the parts are unknown or do not go together."""
        if self.ndim not in (2, 3):
            raise WeightsError(f"Spatial rank: found {self.ndim}, expected 2 or 3.")
        if self.ndim == 3 and self.inflate is None:
            raise WeightsError(
                f"3D weights need an inflation mode, one of: {', '.join(inflate.INFLATE)}."
            )
        if self.ndim == 2 and self.inflate is not None:
            raise WeightsError(
                f"Inflation mode {self.inflate!r} is for 3D weights; the rank asked for is 2."
            )
        if self.inflate is not None:
            inflate.check_mode(self.inflate)
        norms.check(self.norm, self.inflate)
        channels.check(self.stem, self.in_channels)


@dataclasses.dataclass(frozen=True)
class Converted:
    """An encoder's tensors and the accounts.

    Attributes:
      arrays: path -> float32 array, ready for `params.save_weights`.
      used, unused: names of source tensors.
      fresh: paths of target tensors that were drawn, not carried over.
    """

    arrays: Mapping[str, np.ndarray]
    used: tuple[str, ...]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]


def stem_path(architecture: str) -> str:
    """The weight file's path for the encoder's first kernel."""
    return f"params/{rename.MODULE}/{encoders.stem(architecture)}"


@functools.cache
def target_shapes(architecture: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every tensor of the real encoder; nothing is computed."""
    encoder = encoders.build(architecture, norm=recipe.norm)
    image = jax.ShapeDtypeStruct((1, *(32,) * recipe.ndim, recipe.in_channels), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
    flat = params.flatten({c: {rename.MODULE: tree} for c, tree in variables.items()})
    return {path: leaf.shape for path, leaf in flat.items()}


def convert(source: Source, recipe: Recipe) -> Converted:
    """Renames, adapts and inflates; total or loud.

    Every source tensor is used or listed as unused, every target tensor is filled or listed as
    fresh.

    Raises:
      WeightsError: listing everything that does not fit, at once.
    """
    targets = target_shapes(source.name.architecture, recipe)
    stem = stem_path(source.name.architecture)
    fresh = (stem,) if channels.draws(recipe.stem, recipe.in_channels) else ()
    arrays, used, unused, problems = {}, [], [], []
    for name, array in source.arrays.items():
        path = rename.flax_path(name)
        if rename.UNUSED.fullmatch(name) or path in fresh:
            unused.append(name)
        elif path is not None and norms.drops(path, recipe.norm):
            unused.append(name)
        elif path not in targets:
            problems.append(f"unknown in the source: {name} {array.shape}")
        else:
            used.append(name)
            problem, arrays[path] = _fit(path == stem, array, targets[path], recipe)
            problems += [f"{name}: {problem}"] if problem else []
    for path in fresh:
        arrays[path] = channels.draw(targets[path], recipe.stem, recipe.seed)
    problems += [f"missing in the source: {path}" for path in targets if path not in arrays]
    if problems:
        origin = source.origin["file"] or source.origin["id"]
        raise WeightsError(
            f"{origin} is not a complete {source.name.model} ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
            + "\nIs this a checkpoint of another architecture? Give the timm name it was made for."
        )
    arrays = {path: arrays[path] for path in targets}
    return Converted(arrays, tuple(used), tuple(unused), fresh)


def _fit(
    is_stem: bool, array: np.ndarray, shape: tuple[int, ...], recipe: Recipe
) -> tuple[str | None, np.ndarray]:
    """One tensor in its target's shape, or what is wrong with it."""
    array = rename.to_flax_layout(array).astype(np.float32)
    if not np.isfinite(array).all():
        return "holds NaN or infinite values", array
    # Checked before any change of shape, so that the message speaks of the source's own shape.
    flat = shape[-4:] if array.ndim == 4 else shape
    if is_stem:
        flat = (*flat[:2], channels.SOURCE_CHANNELS, flat[3])
    if array.shape != flat:
        return f"found {array.shape}, expected {flat} (channels last)", array
    if is_stem:
        array = channels.adapt(array, recipe.in_channels, recipe.stem)
    if recipe.ndim == 3 and array.ndim == 4:
        array = inflate.inflate(array, shape[0], recipe.inflate)
    return None, array
