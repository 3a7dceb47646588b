"""Weights into a model: what it needs of them, and the merge, which is total or loud."""

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.models import encoders
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.paths import ENCODER, flatten, inner, is_head, select, unflatten
from crossdim_jax.weights.record import CLAIMS


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """Account of a `merge`; paths, sorted.

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


def requirements(model: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Record that a network needs its encoder's weights to have, for `record.check_fit`.

    A config's claims are added so: `| claims(config.weights)`.

    Args:
      model: a network with the attribute `encoder`, an `EncoderSpec`, and `encoder_path` if its
        encoder is not at the top.
      variables: its variables, concrete or abstract.
    """
    spec, inside = model.encoder, f"params/{encoder_path(model)}/"
    flat = {
        f"params/{ENCODER}/{path.removeprefix(inside)}": leaf
        for path, leaf in flatten(variables).items()
        if path.startswith(inside)
    }
    kernel = flat[f"params/{ENCODER}/{encoders.stem(spec.name)}"]  # (*k, in, out)
    ndim = len(kernel.shape) - 2
    return {
        "architecture": spec.name,
        "ndim": ndim,
        "in_channels": kernel.shape[-2],
        "padding": spec.padding,
        "eps": spec.eps,
        "norm": spec.own_norm,
        **depth_form(spec.name, {path: leaf.shape for path, leaf in flat.items()}, ndim),
    }


def encoder_path(model: Any) -> str:
    """Path of a network's encoder, which weight files call `encoder`."""
    return getattr(model, "encoder_path", ENCODER)


def claims(options: Mapping[str, Any]) -> dict[str, Any]:
    """Claims of a config's section `weights` on how its file was made, for `record.check_fit`."""
    return {field: options.get(field) for field in CLAIMS}


def depth_form(architecture: str, shapes: Mapping[str, Sequence[int]], ndim: int) -> dict[str, Any]:
    """Extent of an encoder's kernels along depth.

    Args:
      architecture: its name.
      shapes: path -> shape of its tensors; other modules' are not looked at.
      ndim: its spatial rank; in 2D there is nothing to say.

    Returns:
      depth_taps, a list of the most taps of the stem (and all else that is in no stage), then of
      each stage; and factorised, whether depth filters are kept apart. Both None in 2D.
    """
    if ndim != 3:
        return {"depth_taps": None, "factorised": None}
    taps, factorised, prefix = {0: 1}, False, f"params/{ENCODER}/"
    for path, shape in shapes.items():
        leaf = path.rpartition("/")[2]
        if path.startswith(prefix) and leaf in ("kernel", "depth_kernel"):
            stage = encoders.stage(architecture, path.removeprefix(prefix))
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
    held, inside = arrays.keys(), _inside(targets, weights.arrays.keys() - head, encoder)
    skipped = select(skip, sorted(inside | held))
    filled = (inside & held) - skipped
    _refuse_misfits(weights.name, targets, arrays, inside - skipped, held - skipped)
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


def _inside(targets: Mapping[str, Any], held: Set[str], encoder: str) -> set[str]:
    """Paths of the model in the modules that a file with these paths holds."""
    names = {key.split("/")[1] for key in held if "/" in key}
    modules = tuple({_placed(f"/{name}/", encoder) for name in names})
    return {key for key in targets if f"/{inner(key)}".startswith(modules)}


def _refuse_misfits(
    name: str,
    targets: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    asked: Set[str],
    given: Set[str],
) -> None:
    """Raises WeightsError listing what is missing, unknown or mis-shaped; paths are the model's."""
    shapes = {key: (arrays[key].shape, tuple(targets[key].shape)) for key in asked & given}
    problems = [
        *(f"missing in the file: {key}" for key in sorted(asked - given)),
        *(f"unknown to the model: {key}" for key in sorted(given - asked)),
        *(
            f"shape of {key}: found {found}, expected {wanted}"
            for key, (found, wanted) in sorted(shapes.items())
            if found != wanted
        ),
    ]
    if problems:
        raise WeightsError(
            f"{name} does not fit the model ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
            + "\nPort weights for this model (python -m weight_port --config=CONFIG), or name "
            "paths that may differ in skip patterns."
        )


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
