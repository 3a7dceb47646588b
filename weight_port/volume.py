"""A 3D weight file against its 2D network, on volumes that do not change along depth."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from crossdim_jax.errors import CrossdimError
from crossdim_jax.models import encoders
from crossdim_jax.models.family import FIXED
from crossdim_jax.weights import inflate, norms
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.recipe import Recipe, kernel_modes, stem_path, target_shapes
from weight_port import forward
from weight_port.convert import convert
from weight_port.forward import NOT_RUN
from weight_port.source import Source

FROM_SOURCE = "the source"  # how a certificate says where its 2D network comes from


@dataclasses.dataclass(frozen=True)
class Promise:
    """Promise of an inflation on a depth-constant volume, for one way of padding the depth.

    Attributes:
      where: "everywhere"; "inside", on slices whose field of view stays clear of the ends; "up to
        eps", by which features may still differ much where a variance is as small; or "nowhere".
      why: in a few words.
    """

    where: str
    why: str


def promises(recipe: Recipe, taps: Mapping[str, int], modes: Mapping[str, str]) -> dict[str, Any]:
    """Padding along depth -> what is promised with it.

    Args:
      recipe: how the file was made.
      taps: path -> taps along depth, of every inflated kernel.
      modes: path -> mode, likewise.
    """
    used = {(mode, taps[path]) for path, mode in modes.items() if taps[path] > 1}
    off = sorted({mode for mode, depth in used if not _adds_up(mode, depth)})
    running = recipe.norm in norms.KEEPING
    measured = not running and recipe.norm not in FIXED  # of the whole volume, by the norm itself
    single = all(mode == "center" and depth % 2 for mode, depth in used)
    listed = ", ".join(off)
    if running and recipe.statistics != "carry":
        edge = Promise("nowhere", "running statistics are not those of the 2D network")
    elif not off:
        edge = Promise("everywhere", "the taps of every kernel add up to the 2D kernel")
    elif "acs" in off:
        edge = Promise("nowhere", "acs looks along depth with a third of its kernels")
    elif recipe.norm in FIXED:
        edge = Promise("nowhere", f"{listed}: the taps do not add up, and biases do not grow so")
    elif measured:
        edge = Promise("up to eps", f"the norm undoes the factor of {listed}, but for its eps")
    else:
        edge = Promise("nowhere", f"{listed}: the taps do not add up to the 2D kernel")
    if edge.where != "everywhere":
        zero = Promise("nowhere", "as with edge padding, and zeros come in at the ends")
    elif single:
        zero = Promise("everywhere", "only the middle tap of every kernel is used")
    elif not measured:
        zero = Promise("inside", "away from the ends, where zeros come in")
    else:
        zero = Promise("nowhere", "the norm's own statistics take in the zeros at the ends")
    return {"edge": edge, "zero": zero}


def _adds_up(mode: str, depth: int) -> bool:
    """Whether the taps of a kernel add up to the 2D kernel."""
    return mode in inflate.PROFILES and math.isclose(inflate.PROFILES[mode](depth).sum(), 1)


def compare(
    weights: Weights,
    recipe: Recipe,
    source: Source | None,
    absent: str,
    problems: list[str],
) -> dict[str, Any]:
    """3D against 2D, feature by feature: the certificate's part `volume`.

    Args:
      weights: the 3D file.
      recipe: how it was made.
      source: what it was made of, or None; then its own kernels are summed over depth.
      absent: why there is no source.
      problems: gets a sentence for every promise that does not hold.
    """
    targets = target_shapes(weights.metadata["architecture"], recipe)
    modes = kernel_modes(recipe, targets)
    summed = sum_over_depth(weights.arrays)
    taps = {path: _taps(path, weights.arrays) for path in modes}
    reference, whose = _reference(weights, recipe, source, absent, summed, modes, taps)
    runs = _Runs(weights)
    image = forward.image(recipe.in_channels)
    noise = np.random.default_rng(forward.SEED + 1).normal(
        size=(1, forward.DEPTH, *image.shape[1:])
    )
    constant = np.repeat(image[:, None], forward.DEPTH, axis=1)
    marked = constant.copy()
    marked[:, [0, *range(-1 - _unseen(weights, taps), 0)]] += 1  # all that sees the ends changes
    flat = runs.flat(reference, image) if reference else None
    own = runs.flat(summed, image)
    limits = forward.limits(own, runs.flat(summed, forward.perturbed(image)))
    edge = runs.deep(constant, "edge")
    zero = runs.deep(constant, "zero")
    uncorrelated = runs.deep(noise.astype(np.float32), "zero")
    inside = [*map(unchanged_slices, zero, runs.deep(marked, "zero"))]

    rows = []
    for i in range(len(own)):
        row: dict[str, Any] = {
            "reduction": forward.PLANE // zero[i].shape[2],
            "channels": zero[i].shape[-1],
            "limit": limits[i],
            "own": _against(edge[i], own[i]),
            "slices": {"all": zero[i].shape[1], "inside": int(inside[i].sum())},
            "activations": {
                "constant": forward.moments(zero[i]),
                "uncorrelated": forward.moments(uncorrelated[i]),
            },
        }
        if flat:
            row["edge"] = _against(edge[i], flat[i])
            row["zero"] = _against(zero[i], flat[i])
            row["zero_middle"] = _against(zero[i][:, zero[i].shape[1] // 2][:, None], flat[i])
            some = inside[i].any()
            row["zero_inside"] = _against(zero[i][:, inside[i]], flat[i]) if some else None
            row["activations"]["2d"] = forward.moments(flat[i])
        rows.append(row)
    promised = promises(recipe, taps, modes)
    problems += broken(rows, promised)
    return {
        "reference": whose,
        "promises": {name: dataclasses.asdict(promise) for name, promise in promised.items()},
        "stages": rows,
    }


def broken(rows: Sequence[Mapping[str, Any]], promised: Mapping[str, Promise]) -> list[str]:
    """The promises that the measured rows do not keep, as sentences."""
    checks = [("own", "3D with edge padding against 2D of its kernels summed over depth")]
    if promised["edge"].where == "everywhere":
        checks.append(("edge", "3D with edge padding against 2D"))
    if promised["zero"].where == "everywhere":
        checks.append(("zero", "3D with zero padding against 2D"))
    if promised["zero"].where == "inside":
        checks.append(("zero_inside", "3D with zero padding against 2D, away from the ends"))
    found = []
    for field, words in checks:
        for row in rows:
            if field not in row or (field == "zero_inside" and not row["slices"]["inside"]):
                continue
            error = row[field]
            if error is None or error > row["limit"]:
                found.append(
                    f"{words}: feature /{row['reduction']} differs by {error}, expected at most "
                    f"{row['limit']:g}"
                )
    return found


def sum_over_depth(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the 2D network that a 3D one is on depth-constant, edge-padded volumes."""
    summed = {}
    for path, array in arrays.items():
        if path.endswith("/depth_kernel"):
            continue
        if path.endswith("/kernel") and array.ndim >= 5:
            wide = array.astype(np.float64).sum(-5)
            filter_ = arrays.get(f"{path.rpartition('/')[0]}/depth_kernel")
            wide = wide if filter_ is None else wide * filter_.astype(np.float64).sum(-5)
            array = wide.astype(np.float32)
        summed[path] = array
    return summed


def _unseen(weights: Weights, taps: Mapping[str, int]) -> int:
    """Slices at the end that the stem's strided windows may leave out, where they are short."""
    architecture = weights.metadata["architecture"]
    stride = encoders.depth_reductions(architecture)[0]
    return max(stride - taps.get(stem_path(architecture), stride), 0)


def _taps(path: str, arrays: Mapping[str, np.ndarray]) -> int:
    return arrays.get(f"{path.rpartition('/')[0]}/depth_kernel", arrays[path]).shape[-5]


def _reference(
    weights: Weights,
    recipe: Recipe,
    source: Source | None,
    absent: str,
    summed: Mapping[str, np.ndarray],
    modes: Mapping[str, str],
    taps: Mapping[str, int],
) -> tuple[dict[str, np.ndarray] | None, str]:
    """The tensors of the 2D network to compare with, and where they come from."""
    stem = stem_path(weights.metadata["architecture"])
    drawn = stem in weights.metadata.get("fresh", ())
    if source is not None:
        flat = Recipe(2, recipe.in_channels, recipe.norm, None, recipe.stem, recipe.seed)
        flat = dataclasses.replace(flat, head=False, statistics=recipe.statistics)
        try:
            arrays = dict(convert(source, flat).arrays)
        except CrossdimError as error:
            return None, f"{NOT_RUN}: {str(error).splitlines()[0]}"
        if not drawn:
            return arrays, FROM_SOURCE
        return arrays | {
            stem: summed[stem]
        }, f"{FROM_SOURCE}, with the drawn stem summed over depth"
    unknown = sorted(m for p, m in modes.items() if m not in inflate.PROFILES and taps[p] > 1)
    if unknown:
        return None, f"{NOT_RUN}: {absent}, and {unknown[0]} kernels do not add up to the 2D ones"
    arrays = dict(summed)
    for path, mode in modes.items():
        if not (drawn and path == stem):
            factor = inflate.PROFILES[mode](taps[path]).sum()
            arrays[path] = (arrays[path] / factor).astype(np.float32)
    return arrays, f"its own kernels, summed over depth and divided by the mode's sum ({absent})"


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs the file's encoder, and its 2D counterpart."""

    weights: Weights

    def flat(self, arrays: Mapping[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
        """Features (b, 1, h, w, c) of the 2D network with these tensors."""
        record = {**self.weights.metadata, "ndim": 2}
        settings = forward.attributes(record)
        found = forward.features(record["architecture"], arrays, image, **settings)
        return [feature[:, None] for feature in found]

    def deep(self, volume: np.ndarray, depth_padding: str) -> list[np.ndarray]:
        """Features (b, d, h, w, c) of the file's network."""
        record = self.weights.metadata
        settings = forward.attributes(record, depth_padding=depth_padding)
        return forward.features(record["architecture"], self.weights.arrays, volume, **settings)


def _against(found: np.ndarray, expected: np.ndarray) -> float | None:
    """Relative error of (b, d, h, w, c) against one slice (b, 1, h, w, c), the same at each d."""
    return forward.short(forward.relative_error(found, np.broadcast_to(expected, found.shape)))


def unchanged_slices(feature: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(d,) whether a slice of one feature is, bit for bit, that of the other."""
    return (feature == other).all(axis=(0, 2, 3, 4))
