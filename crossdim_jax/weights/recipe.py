"""Recipe of an encoder's weights: how a 2D network's tensors become them, and their shapes."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights import channels, inflate, norms
from crossdim_jax.weights.paths import ENCODER, flatten, select

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


def for_network(
    spec: encoders.EncoderSpec,
    needs: Mapping[str, Any],
    claims: Mapping[str, Any],
    *,
    reestimate: bool,
    seed: int = 0,
    head: bool = False,
) -> Recipe:
    """Recipe that a network and a config's section `weights` ask for.

    Args:
      spec: the network's encoder.
      needs: from `merge.requirements`.
      claims: from `merge.claims`; what is about volumes is not looked at in 2D.
      reestimate: whether running statistics will be measured anew.
      seed, head: see `Recipe`.

    Raises:
      WeightsError: the parts do not go together.
    """
    deep = needs["ndim"] == 3
    return Recipe(
        ndim=needs["ndim"],
        in_channels=needs["in_channels"],
        norm=needs["norm"],
        inflate=(claims["inflate"] or None) if deep else None,
        stem=claims["stem"],
        seed=seed,
        depth_kernels=spec.depth_kernels if deep else None,
        factorised=deep and spec.factorised,
        inflate_at=tuple(claims["inflate_at"] or ()) if deep else (),
        statistics="reestimate" if reestimate else "carry",
        head=head,
    )


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
        depth, rows, columns = taps(path, targets), *targets[path][-4:-2]
        factorised = partner(path) in targets
        if mode == "acs" and (factorised or depth not in (1, rows) or rows != columns):
            found = "factorised" if factorised else f"{depth} taps along depth"
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


def partner(kernel: str) -> str:
    """The path of a factorised kernel's depth filter."""
    return f"{kernel.rpartition('/')[0]}/{DEPTH_KERNEL}"


def taps(kernel: str, targets: Mapping[str, tuple[int, ...]]) -> int:
    """Taps along depth of a 3D kernel, (..., depth, k, k, in, out), factorised or dense."""
    return targets.get(partner(kernel), targets[kernel])[-5]
