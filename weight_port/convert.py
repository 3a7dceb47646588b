"""A source's tensors -> an encoder's, with every tensor of both sides accounted for."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.errors import WeightsError, first_of
from crossdim_jax.models import encoders
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.gate import numbers_problem
from crossdim_jax.weights.paths import ENCODER, flatten, is_head, select
from weight_port import channels, families, inflate, norms, rename
from weight_port.source import Source

DEPTH_KERNEL = "depth_kernel"  # name of a factorised convolution's depth filter
# What of a recipe the encoder's shapes hang on.
BUILT_BY = ("ndim", "in_channels", "norm", "depth_kernels", "factorised")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Recipe by which an encoder's weights are made of a source's.

    Attributes:
      ndim: spatial rank, 2 or 3.
      in_channels: input channels of the stem.
      norm: one of `layers.NORMS`.
      inflate: a key of `inflate.INFLATE`; None in 2D.
      stem: one of `channels.POLICIES`.
      seed: of a stem that is drawn anew.
      depth_kernels: taps along depth: None for the in-plane size, one number, or one per stage,
        the stem first; as the encoder takes them.
      factorised: whether depthwise kernels are kept as a plane and a depth filter.
      inflate_at: "PATTERN=MODE" strings, the modes of kernels that depart from `inflate`; see
        `kernel_modes`.
      statistics: of norms that keep them: "carry", or "reestimate" where they will be measured
        anew before they are used.
      head: whether 2D weights keep the classifier's head, in the collection `head`; 3D ones do
        not.
    """

    ndim: int
    in_channels: int
    norm: str
    inflate: str | None
    stem: str
    seed: int = 0
    depth_kernels: int | tuple[int, ...] | None = None
    factorised: bool = False
    inflate_at: tuple[str, ...] = ()
    statistics: str = "carry"
    head: bool = True

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
        deep = {
            "depth kernels": self.depth_kernels,
            "factorised": self.factorised,
            "inflation by pattern": self.inflate_at,
        }
        if self.ndim == 2 and any(deep.values()):
            asked = ", ".join(name for name, value in deep.items() if value)
            raise WeightsError(f"For 3D weights only: {asked}; the rank asked for is 2.")
        for mode in self.modes:
            inflate.check_mode(mode)
        if self.factorised:
            inflate.check_factorised(self.inflate)
        norms.check(self.norm, self.modes, self.statistics)
        channels.check(self.stem, self.in_channels)

    @property
    def modes(self) -> tuple[str, ...]:
        """The inflation modes it speaks of, each once."""
        said = [split_choice(choice)[1] for choice in self.inflate_at]
        return tuple(dict.fromkeys([self.inflate, *said] if self.inflate else said))


def split_choice(choice: str) -> tuple[str, str]:
    """ "PATTERN=MODE" -> pattern and mode, of which the pattern may hold "=" itself.

    Raises:
      WeightsError: there is no pattern or no mode.
    """
    pattern, _, mode = choice.rpartition("=")
    if not pattern or not mode:
        raise WeightsError(
            f"Inflation by pattern: found {choice!r}, expected PATTERN=MODE, such as "
            "'blocks_[56]_.*=center'."
        )
    return pattern, mode


@dataclasses.dataclass(frozen=True)
class Converted:
    """An encoder's tensors and the accounts.

    Attributes:
      arrays: path -> float32 array, ready for `save_weights`.
      used, unused: names of source tensors.
      fresh: paths of target tensors that were not carried over: drawn, or statistics that the
        source has none of.
      modes: path -> inflation mode of every inflated kernel.
    """

    arrays: Mapping[str, np.ndarray]
    used: tuple[str, ...]
    unused: tuple[str, ...]
    fresh: tuple[str, ...]
    modes: Mapping[str, str] = dataclasses.field(default_factory=dict)


def stem_path(architecture: str) -> str:
    """The weight file's path for the encoder's first kernel."""
    return f"params/{ENCODER}/{encoders.stem(architecture)}"


@functools.cache
def target_shapes(architecture: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """Path -> shape of every tensor of the real encoder; nothing is computed.

    Raises:
      WeightsError: the encoder does not take what the recipe asks of it.
    """
    parts = {field: getattr(recipe, field) for field in BUILT_BY}
    plain = Recipe(**parts, inflate="mean" if recipe.ndim == 3 else None, stem="tile")
    if recipe != plain:  # traced once for all recipes of the same encoder
        return target_shapes(architecture, plain)
    options: dict[str, Any] = {}
    if recipe.ndim == 3:
        asked = {"depth_kernels": recipe.depth_kernels, "factorised": recipe.factorised}
        options = {name: value for name, value in asked.items() if value}
    image = jax.ShapeDtypeStruct((1, *(32,) * recipe.ndim, recipe.in_channels), jnp.float32)
    try:
        encoder = encoders.build(architecture, norm=recipe.norm, **options)
        variables = jax.eval_shape(encoder.init, jax.random.key(0), image)
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise WeightsError(f"{architecture} cannot be built like this: {error}") from error
    flat = flatten({c: {ENCODER: tree} for c, tree in variables.items()})
    return {path: leaf.shape for path, leaf in flat.items()}


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


def kernel_modes(recipe: Recipe, targets: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Path -> inflation mode of every kernel with a window; nothing in 2D.

    The patterns of `recipe.inflate_at` are those of `select`; they may also leave out the
    module: `blocks_5_.*`. Where several match a kernel, the last one counts.

    Args:
      recipe: what is asked for.
      targets: from `target_shapes`.

    Raises:
      WeightsError: a pattern that matches no such kernel, or a mode that cannot make one of them.
    """
    if recipe.ndim == 2:
        return {}
    kernels = [
        path
        for path, shape in targets.items()
        if path.endswith("/kernel") and shape[-4:-2] != (1, 1)
    ]
    modes = dict.fromkeys(kernels, recipe.inflate)
    prefix = f"params/{ENCODER}/"
    names = {path.removeprefix(prefix): path for path in kernels}
    names |= {path.removeprefix("params/"): path for path in kernels}
    for choice in recipe.inflate_at:
        pattern, mode = split_choice(choice)
        try:
            chosen = select([pattern], [*names, *kernels])
        except WeightsError as error:
            raise WeightsError(
                f"Inflation by pattern, {choice!r}, chooses among the kernels with a window.\n"
                f"{error}"
            ) from error
        modes |= dict.fromkeys((names.get(name, name) for name in chosen), mode)
    problems = []
    for path, mode in modes.items():
        taps, rows, columns = _taps(path, targets), *targets[path][-4:-2]
        factorised = _partner(path) in targets
        if mode == "acs" and (factorised or taps not in (1, rows) or rows != columns):
            found = "factorised" if factorised else f"{taps} taps along depth"
            problems.append(f"{path}: {rows}x{columns}, {found}")
    if problems:
        raise WeightsError(
            "Inflation mode 'acs' turns a kxk kernel into planes across depth, which takes a dense "
            "kernel with k taps along depth (or 1, the 2D kernel itself). It cannot make:\n  "
            + "\n  ".join(problems)
            + "\nLeave the depth kernels at the in-plane size, or choose another mode for these "
            "with --inflate-at 'PATTERN=MODE'."
        )
    return modes


def _partner(kernel: str) -> str:
    """The path of a factorised kernel's depth filter."""
    return f"{kernel.rpartition('/')[0]}/{DEPTH_KERNEL}"


def _taps(kernel: str, targets: Mapping[str, tuple[int, ...]]) -> int:
    """Taps along depth of a 3D kernel, (..., depth, k, k, in, out), factorised or dense."""
    return targets.get(_partner(kernel), targets[kernel])[-5]


def convert(source: Source, recipe: Recipe) -> Converted:
    """Renames, adapts and inflates; total or loud.

    Every source tensor is used or listed as unused, every target tensor is filled or listed as
    fresh.

    Raises:
      WeightsError: listing everything that does not fit, at once.
    """
    family = families.of(source.name.architecture)
    targets = target_shapes(source.name.architecture, recipe)
    modes = kernel_modes(recipe, targets)
    stem = stem_path(source.name.architecture)
    drawn = (stem,) if channels.draws(recipe.stem, recipe.in_channels) else ()
    keep_head = recipe.ndim == 2 and recipe.head
    fit = _Fit(source, recipe, targets, modes, stem)
    arrays, used, unused, problems = {}, [], [], []
    for name, array in source.arrays.items():
        path = family.flax_path(name)
        head = path is not None and is_head(path)
        if rename.UNUSED.fullmatch(name) or path in drawn or (head and not keep_head):
            unused.append(name)
        elif path is not None and norms.drops(path, recipe.norm):
            unused.append(name)
        elif path not in targets and not head:
            problems.append(f"unknown in the source: {name} {array.shape}")
        else:
            used.append(name)
            problem, made = fit(path, array)
            arrays |= made
            problems += [f"{name}: {problem}"] if problem else []
    fresh = dict.fromkeys(drawn)
    for path in drawn:
        arrays[path] = channels.draw(targets[path], recipe.stem, recipe.seed)
    for path, shape in targets.items():
        statistic = path.startswith("batch_stats/")
        if statistic and path not in arrays and recipe.statistics == "reestimate":
            arrays[path] = np.full(shape, float(path.endswith("/var")), np.float32)
            fresh[path] = None
    problems += [f"missing in the source: {path}" for path in targets if path not in arrays]
    _refuse(source, problems)
    unused += source.others
    heads = sorted(filter(is_head, arrays))
    arrays = {path: arrays[path] for path in (*targets, *heads)}
    modes = {path: mode for path, mode in modes.items() if path not in drawn}
    return Converted(arrays, tuple(used), tuple(unused), tuple(fresh), modes)


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


@dataclasses.dataclass(frozen=True)
class _Fit:
    """Puts one tensor in its target's shape: `(path, array) -> what is wrong or None, arrays`."""

    source: Source
    recipe: Recipe
    targets: Mapping[str, tuple[int, ...]]
    modes: Mapping[str, str]
    stem: str

    def __call__(self, path: str, array: np.ndarray) -> tuple[str | None, dict[str, np.ndarray]]:
        if problem := numbers_problem(path, array):
            return problem, {path: array}
        family = families.of(self.source.name.architecture)
        array = family.to_flax_layout(array, path, self.targets.get(path)).astype(np.float32)
        if path not in self.targets:  # the head has no place in the encoder
            return None, {path: array}
        shape = self.targets[path]
        deep = self.recipe.ndim == 3 and len(shape) >= 5
        # Checked before any change of shape, so that the message speaks of the source's own shape.
        flat = (*shape[:-5], *shape[-4:]) if deep else shape
        if path == self.stem:
            flat = (*flat[:-2], self._source_channels(), flat[-1])
        if array.shape != flat:
            return f"found {array.shape}, expected {flat} (channels last)", {path: array}
        if path == self.stem:
            array = channels.adapt(array, self.recipe.in_channels, self.recipe.stem)
        return None, self._deepen(path, array) if deep else {path: array}

    def _source_channels(self) -> int:
        """Input channels of the source's stem: a weight file of ours may be adapted already."""
        found, own = self.source.in_channels, self.source.own_channels
        if found not in (own, self.recipe.in_channels):
            raise WeightsError(
                f"{self.source.origin['file']}: its stem has {found} input channels, asked for "
                f"{self.recipe.in_channels}. Start from a file with {own} "
                "input channels, or ask for as many as it has."
            )
        return found

    def _deepen(self, path: str, array: np.ndarray) -> dict[str, np.ndarray]:
        mode = self.modes.get(path, self.recipe.inflate)
        depth = _taps(path, self.targets)
        *mixed, k1, k2, c_in, c_out = array.shape  # mixed: the kernels of a conditional one
        kernels = array.reshape(-1, k1, k2, c_in, c_out)
        if _partner(path) in self.targets:
            planes, filters = zip(
                *(inflate.factorise(kernel, depth, mode) for kernel in kernels), strict=True
            )  # the mode's filter, the same for all
            made = {path: np.stack(planes), _partner(path): filters[0]}
        else:
            made = {path: np.stack([inflate.inflate(kernel, depth, mode) for kernel in kernels])}
        made[path] = made[path].reshape(*mixed, *made[path].shape[1:])
        return made
