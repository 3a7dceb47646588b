"""Parameters by path: one naming, one pattern language, and ported weights into a model.

A parameter's path is its place in the variables, joined with "/": `params/encoder/bn1/scale`,
`batch_stats/encoder/bn1/mean`. The first part is the *collection*, the second the *module*.

Patterns are Python regular expressions that must match the whole path (`re.fullmatch`), with or
without its collection: `encoder/conv_stem/kernel`, `encoder/.*`, `.*/(scale|bias)`. A pattern that
matches nothing is an error, because it is a misspelling.

The names of `weights`, which reads and writes the files, can be had from here too.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.file import (
    CLAIMS,
    COLLECTIONS,
    FORMAT,
    Weights,
    check,
    describe,
    is_head,
    load_weights,
    save_weights,
)

__all__ = [
    "CLAIMS",
    "FORMAT",
    "MergeReport",
    "Weights",
    "check",
    "claims",
    "depth_form",
    "describe",
    "flatten",
    "load_weights",
    "merge",
    "requirements",
    "save_weights",
    "select",
    "unflatten",
]


ENCODER = "encoder"  # the module that weight files hold


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What `merge` did; paths, sorted.

    Attributes:
      filled: took the file's value.
      fresh: kept the model's initial value because a skip pattern says so.
      unused: of the file, not taken: because a skip pattern says so, or because they are the
        classification head, which only other programs use.
      outside: of the model, in modules that the file does not hold.
    """

    filled: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    outside: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a log."""
        head = sum(is_head(path) for path in self.unused)
        return (
            f"{len(self.filled)} tensors from the file, {len(self.fresh)} left fresh and "
            f"{len(self.unused) - head} left out by skip patterns, {len(self.outside)} in other "
            f"modules{f'; {head} of the classification head not used' if head else ''}"
        )


# --------------------------------------------------------------------------- paths and patterns


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings -> {"a/b/c": leaf}, in the tree's order; empty branches vanish."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{path}": leaf for path, leaf in flatten(value).items()})
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b/c": leaf} -> nested dicts; the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def select(patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
    """The paths that at least one pattern matches, in the module's pattern language.

    Args:
      patterns: regular expressions for whole paths, with or without the collection.
      paths: the paths to choose from, with or without the collection.

    Raises:
      WeightsError: naming every pattern that is not a regular expression or matches nothing.
    """
    if isinstance(patterns, str):  # a lone string would be taken letter by letter
        patterns = (patterns,)
    paths = list(paths)
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            problems.append(f"{pattern!r}: not a regular expression ({error})")
            continue
        matched = {p for p in paths if compiled.fullmatch(p) or compiled.fullmatch(_inner(p))}
        if not matched:
            problems.append(f"{pattern!r}: matches no path")
        chosen |= matched
    if problems:
        example = _inner(paths[0]) if paths else "(there is none)"
        raise WeightsError(
            "Parameter patterns are wrong:\n  "
            + "\n  ".join(problems)
            + f"\nA pattern must match a whole path, such as {example!r}; 'encoder/.*' takes all "
            "of the encoder."
        )
    return chosen


def _inner(path: str) -> str:
    """The path without its collection."""
    collection, _, rest = path.partition("/")
    return rest if collection in COLLECTIONS and rest else path


# --------------------------------------------------------------------------- into a model


def requirements(model: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a network needs of its encoder's weights, in the terms of `check`.

    A config's own words are added so: `| claims(config.weights)`.

    Args:
      model: a network with the attributes `encoder`, `norm`, `padding` and `encoder_eps`, and
        `encoder_path` if its encoder is not at the top.
      variables: its variables, concrete or abstract.
    """
    inside = f"params/{encoder_path(model)}/"
    flat = {
        f"params/{ENCODER}/{path.removeprefix(inside)}": leaf
        for path, leaf in flatten(variables).items()
        if path.startswith(inside)
    }
    kernel = flat[f"params/{ENCODER}/{encoders.stem(model.encoder)}"]  # (*k, in, out)
    ndim = len(kernel.shape) - 2
    return {
        "architecture": model.encoder,
        "ndim": ndim,
        "in_channels": kernel.shape[-2],
        "padding": model.padding,
        "eps": model.encoder_eps,
        "norm": model.norm,
        **depth_form(model.encoder, {path: leaf.shape for path, leaf in flat.items()}, ndim),
    }


def encoder_path(model: Any) -> str:
    """Where a network keeps its encoder, whose weights files hold as `encoder`."""
    return getattr(model, "encoder_path", ENCODER)


def claims(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a config's section `weights` says of how its file was made, in the terms of `check`."""
    return {field: options.get(field) for field in CLAIMS}


def depth_form(architecture: str, shapes: Mapping[str, Sequence[int]], ndim: int) -> dict[str, Any]:
    """Extent of an encoder's kernels along depth.

    Args:
      architecture: a key of `encoders.ENCODERS`.
      shapes: path -> shape of its tensors; other modules' are not looked at.
      ndim: its spatial rank; in 2D there is nothing to say.

    Returns:
      depth_taps, a list of the most taps of the stem (and all else that is in no stage), then of
      each stage; and factorised, whether depth filters are kept apart. Both None in 2D.
    """
    if ndim != 3:
        return {"depth_taps": None, "factorised": None}
    taps, factorised = {0: 1}, False
    inside = f"params/{ENCODER}/"
    for path, shape in shapes.items():
        leaf = path.rpartition("/")[2]
        if path.startswith(inside) and leaf in ("kernel", "depth_kernel"):
            stage = encoders.stage(architecture, path.removeprefix(inside))
            index = stage[1] + 1 if stage else 0
            if len(shape) >= 5:  # (..., depth, k, k, in, out)
                taps[index] = max(taps.get(index, 1), int(shape[-5]))
            factorised |= leaf == "depth_kernel"
    return {
        "depth_taps": [taps.get(i, 1) for i in range(max(taps) + 1)],
        "factorised": factorised,
    }


def merge(
    variables: Mapping[str, Any],
    weights: Weights,
    *,
    skip: Sequence[str] = (),
    encoder: str = ENCODER,
) -> tuple[dict[str, Any], MergeReport]:
    """Puts a weight file's values into a model's variables; total or loud.

    Within the modules that the file holds (usually `encoder`), in every collection, each of the
    model's tensors must be in the file, each of the file's in the model, with equal shapes. Other
    modules are not touched, and the classification head of a 2D file is not used. Call it before
    the optimiser's init; only values change, never a shape, a dtype or a sharding.

    Args:
      variables: {"params": ..., "batch_stats": ...}; leaves are arrays or `ShapeDtypeStruct`s
        (filled ones become arrays, the others stay abstract).
      weights: from `load_weights`.
      skip: patterns (see the module) of paths that keep the model's initial value, and of paths
        in the file to leave out. Paths are the model's.
      encoder: where the model keeps what the file calls `encoder`, see `encoder_path`.

    Returns:
      the new variables as nested dicts, and what was done.

    Raises:
      WeightsError: listing all missing, unused and mis-shaped paths at once, or a skip pattern
        that matches nothing.
    """
    targets = flatten(variables)
    head = {key for key in weights.arrays if is_head(key)}
    arrays = {_placed(k, encoder): v for k, v in weights.arrays.items() if k not in head}
    held = arrays.keys()
    names = {key.split("/")[1] for key in weights.arrays.keys() - head if "/" in key}
    modules = {_placed(f"/{name}/", encoder) for name in names}
    inside = {key for key in targets if f"/{_inner(key)}".startswith(tuple(modules))}
    skipped = select(skip, sorted(inside | held))
    filled = (inside & held) - skipped
    shapes = {key: (arrays[key].shape, tuple(targets[key].shape)) for key in filled}

    problems = [
        *(f"missing in the file: {key}" for key in sorted(inside - held - skipped)),
        *(f"unknown to the model: {key}" for key in sorted(held - inside - skipped)),
        *(
            f"shape of {key}: found {found}, expected {wanted}"
            for key, (found, wanted) in sorted(shapes.items())
            if found != wanted
        ),
    ]
    if problems:
        raise WeightsError(
            f"{weights.name} does not fit the model ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
            + "\nPort weights for this model (python -m weight_port --config=CONFIG), or name "
            "paths that may differ in skip patterns."
        )
    merged = {
        key: _like(arrays[key], leaf) if key in filled else leaf for key, leaf in targets.items()
    }
    report = MergeReport(
        filled=tuple(sorted(filled)),
        fresh=tuple(sorted(skipped & inside)),
        unused=tuple(sorted((skipped & held) | head)),
        outside=tuple(sorted(targets.keys() - inside)),
    )
    return unflatten(merged), report


def _placed(path: str, encoder: str) -> str:
    """A file's path in the model; the encoder's may be elsewhere."""
    first, module, rest = path.split("/", 2) if path.count("/") > 1 else (path, "", "")
    return "/".join([first, encoder, rest]) if module == ENCODER else path


def _like(value: np.ndarray, target: Any) -> Any:
    """The value with the target's dtype, and on its devices if it has been placed."""
    value = value.astype(target.dtype)
    if isinstance(target, np.ndarray):
        return value
    sharding = getattr(target, "sharding", None)
    if sharding is None or (isinstance(target, jax.Array) and not target.committed):
        return jnp.asarray(value)
    # By callback, so that each process of a multi-host run fills only its own devices.
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
