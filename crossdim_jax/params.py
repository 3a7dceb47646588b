"""Parameters by path: one naming, one pattern language, one weight file format.

A parameter's path is its place in the variables, joined with "/": `params/encoder/bn1/scale`,
`batch_stats/encoder/bn1/mean`. The first part is the *collection*, the second the *module*.

Patterns are Python regular expressions that must match the whole path (`re.fullmatch`), with or
without its collection: `encoder/conv_stem/kernel`, `encoder/.*`, `.*/(scale|bias)`. A pattern that
matches nothing is an error, because it is a misspelling.

A weight file is one safetensors file; its keys are paths, its header holds a JSON record of where
the numbers come from (`weight_port` writes both).
"""

import dataclasses
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_safetensors

from crossdim_jax.errors import WeightsError

FORMAT = "crossdim_jax weights 1"  # raise the number when an older reader would misread a file
COLLECTIONS = ("params", "batch_stats")
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The content of a weight file.

    Attributes:
      arrays: path -> float32 array; paths start with a collection.
      metadata: the record: source, licence, architecture, inflation, versions, ...
      path: the file, or None if the weights were made in memory; used in messages only.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None

    @property
    def name(self) -> str:
        """The file's path, for messages."""
        return str(self.path) if self.path is not None else "the given weights"


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What `merge` did; paths, sorted.

    Attributes:
      filled: took the file's value.
      fresh: kept the model's initial value because a skip pattern says so.
      unused: of the file, not taken because a skip pattern says so.
      outside: of the model, in modules that the file does not hold.
    """

    filled: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    outside: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a log."""
        return (
            f"{len(self.filled)} tensors from the file, {len(self.fresh)} left fresh and "
            f"{len(self.unused)} left out by skip patterns, {len(self.outside)} in other modules"
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


# --------------------------------------------------------------------------- files


def load_weights(path: str | os.PathLike) -> Weights:
    """Reads a weight file that `save_weights` wrote.

    Raises:
      WeightsError: the file is missing, unreadable, truncated, a pickle, or a safetensors file
        that is not in this format.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{path}: a PyTorch checkpoint, expected a .safetensors file written by weight_port. "
            f"Convert it first: python -m weight_port NAME --checkpoint={path}"
        )
    if not path.is_file():
        raise WeightsError(
            f"{path}: no such weight file. Make it with: python -m weight_port "
            "--config=CONFIG (or see python -m weight_port --help)."
        )
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({error}); it is damaged, cut short, or of "
            "another kind. Make or copy it again."
        ) from error
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: found format {header.get('format')!r}, expected {FORMAT!r}. If this is a "
            f"timm checkpoint, convert it: python -m weight_port NAME --checkpoint={path}"
        )
    try:
        record = json.loads(header["record"])
    except (KeyError, ValueError) as error:
        raise WeightsError(
            f"{path}: the record in its header is missing or not JSON. Make the file again with "
            "python -m weight_port."
        ) from error
    return Weights(arrays, record, path)


def save_weights(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> Path:
    """Writes a weight file atomically: readers see the old file or the whole new one.

    Args:
      path: ends with ".safetensors"; its folder is created.
      arrays: path -> array; paths start with a collection.
      metadata: the record, anything JSON can hold.

    Raises:
      WeightsError: another suffix, a path outside the known collections, or a folder that cannot
        be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"{path}: weight files end with .safetensors; choose such a name.")
    foreign = [key for key in arrays if key.split("/")[0] not in COLLECTIONS]
    if foreign:
        raise WeightsError(
            f"{path}: found keys {', '.join(foreign[:5])}; expected paths that start with one of "
            f"{', '.join(COLLECTIONS)}."
        )
    content = to_safetensors(
        {key: np.ascontiguousarray(value) for key, value in arrays.items()},
        {"format": FORMAT, "record": json.dumps(metadata, sort_keys=True)},
    )
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp", delete=False
        ) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # temporary files are private; weights are not
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise WeightsError(
            f"{path}: cannot write the weight file ({error.strerror or error}). Choose a folder "
            "that can be written and has room."
        ) from error
    return path


def describe(metadata: Mapping[str, Any]) -> str:
    """A weight file's record in one line, for a log."""
    get = metadata.get
    inflation = f" by {get('inflate')}" if get("inflate") else ""
    return (
        f"{get('id')} ({get('source')}, licence {get('licence')}) as {get('architecture')}, "
        f"{get('ndim')}D{inflation}, {get('in_channels')} input channels by {get('stem')}, "
        f"{get('norm')} norm, {get('padding')} padding, eps {get('eps'):g}"
    )


# --------------------------------------------------------------------------- into a model


def requirements(model: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What a network needs of its encoder's weights, in the terms of `check`.

    Args:
      model: a network with the attributes `encoder`, `norm`, `padding` and `encoder_eps`.
      variables: its variables, concrete or abstract.
    """
    kernel = flatten(variables)["params/encoder/conv_stem/kernel"]  # (*k, in, out)
    return {
        "architecture": model.encoder,
        "ndim": len(kernel.shape) - 2,
        "in_channels": kernel.shape[-2],
        "padding": model.padding,
        "eps": model.encoder_eps,
        "norm": model.norm,
    }


def check(
    metadata: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    name: str = "the weight file",
    ignore: Sequence[str] = (),
) -> None:
    """Compares a weight file's record with what a model needs; call before `merge`.

    Args:
      metadata: the record, `Weights.metadata`.
      expected: what the model says, any of: architecture ("efficientnet_b0"), ndim, in_channels,
        padding ("same", "symmetric"), eps, norm ("batch", "instance", "group").
      name: the file, for the message.
      ignore: fields of `expected` that may differ; for reproducing code that uses weights
        with another padding or eps than they were trained with.

    Raises:
      WeightsError: listing every field that differs: file, found, expected, what to do.
    """
    unknown = [field for field in ignore if field not in expected]
    if unknown:
        raise WeightsError(
            f"Cannot ignore {', '.join(unknown)} in {name}: the compared fields are "
            f"{', '.join(expected)}."
        )
    problems = []
    for field, wanted in expected.items():
        if field in ignore:
            continue
        found = metadata.get(field)
        if not _agree(field, found, wanted):
            what = "nothing" if found is None else repr(found)
            problems.append(f"{field}: found {what}, expected {wanted!r}. {_ADVICE.get(field, '')}")
    if problems:
        raise WeightsError(
            f"{name} does not fit this model:\n  "
            + "\n  ".join(p.rstrip() for p in problems)
            + "\nMake the file that this model needs with: python -m weight_port --config=CONFIG"
        )


_ADVICE = {
    "architecture": "Choose the encoder that the weights were made for, or port its weights.",
    "ndim": "2D and 3D weights are separate files: port again with --ndim.",
    "in_channels": "Port again with --in-channels and a --stem policy.",
    "padding": "The convention belongs to the weights: change the model's padding.",
    "eps": "The eps belongs to the weights: change the model's eps.",
    "norm": "Port again with --norm.",
}


def _agree(field: str, found: Any, wanted: Any) -> bool:
    if field == "norm":  # instance and group norm hold the same tensors: scale and bias
        return found == wanted or {found, wanted} == {"instance", "group"}
    if field == "eps" and found is not None:
        return math.isclose(found, wanted, rel_tol=1e-6)
    return found == wanted


def merge(
    variables: Mapping[str, Any], weights: Weights, *, skip: Sequence[str] = ()
) -> tuple[dict[str, Any], MergeReport]:
    """Puts a weight file's values into a model's variables; total or loud.

    Within the modules that the file holds (usually `encoder`), in every collection, each of the
    model's tensors must be in the file, each of the file's in the model, with equal shapes. Other
    modules are not touched. Call it before the optimiser's init; only values change, never a
    shape, a dtype or a sharding.

    Args:
      variables: {"params": ..., "batch_stats": ...}; leaves are arrays or `ShapeDtypeStruct`s
        (filled ones become arrays, the others stay abstract).
      weights: from `load_weights`.
      skip: patterns (see the module) of paths that keep the model's initial value, and of paths
        in the file to leave out.

    Returns:
      the new variables as nested dicts, and what was done.

    Raises:
      WeightsError: listing all missing, unused and mis-shaped paths at once, or a skip pattern
        that matches nothing.
    """
    targets = flatten(variables)
    modules = {key.split("/")[1] for key in weights.arrays if "/" in key}
    inside = {key for key in targets if "/" in key and key.split("/")[1] in modules}
    skipped = select(skip, sorted(inside | weights.arrays.keys()))
    filled = (inside & weights.arrays.keys()) - skipped
    shapes = {key: (weights.arrays[key].shape, tuple(targets[key].shape)) for key in filled}

    problems = [
        *(
            f"missing in the file: {key}"
            for key in sorted(inside - weights.arrays.keys() - skipped)
        ),
        *(
            f"unknown to the model: {key}"
            for key in sorted(weights.arrays.keys() - inside - skipped)
        ),
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
        key: _like(weights.arrays[key], leaf) if key in filled else leaf
        for key, leaf in targets.items()
    }
    report = MergeReport(
        filled=tuple(sorted(filled)),
        fresh=tuple(sorted(skipped & inside)),
        unused=tuple(sorted(skipped & weights.arrays.keys())),
        outside=tuple(sorted(targets.keys() - inside)),
    )
    return unflatten(merged), report


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
