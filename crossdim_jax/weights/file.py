"""The weight file: an encoder's ported parameters, and the record of where they come from.

One safetensors file. Its keys are paths, as in `params`; its header holds a JSON record: the
source, its licence and sha256, the inflation mode, the stem, the conventions (`weight_port` writes
both). The header also holds two hashes, of the tensors and of the record, so that a file that was
altered or damaged after it was written is refused.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.storage.files import write_bytes, writing
from crossdim_jax.storage.records import is_number
from crossdim_jax.weights.gate import check_numbers, check_record
from crossdim_jax.weights.tensors import read_safetensors

FORMAT = "crossdim_jax weights 1"  # raise the number when an older reader would misread a file
COLLECTIONS = ("params", "batch_stats")
HEAD = "head"  # the classifier's own tensors, which 2D files keep and no network here loads
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
# Fields of a config's `weights` that say how its file was made; `check` compares them too.
CLAIMS = ("source", "inflate", "inflate_at", "stem")
COLOURS = 3  # input channels at which every stem policy but "reinit" keeps the stem as it is


def is_head(path: str) -> bool:
    """Whether a weight file's path is of the classification head: a collection, not a module."""
    return path.startswith(f"{HEAD}/")


@dataclasses.dataclass(frozen=True)
class Weights:
    """The content of a weight file.

    Attributes:
      arrays: path -> float32 array; paths start with a collection.
      metadata: the record: source, licence, architecture, inflation, versions, ...
      path: the file, or None if the weights were made in memory; used in messages only.
      checked: whether the file held its own hashes and agrees with them.
    """

    arrays: Mapping[str, np.ndarray]
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    path: Path | None = None
    checked: bool = False

    @property
    def name(self) -> str:
        """The file's path, for messages."""
        return str(self.path) if self.path is not None else "the given weights"


def content_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Hexadecimal SHA-256 of the tensors: of each path, dtype, shape and bytes, by sorted path.

    The order in which a file keeps its tensors, and its record, do not enter.
    """
    digest = hashlib.sha256()
    for path in sorted(arrays):
        array = np.ascontiguousarray(arrays[path])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(json.dumps([path, array.dtype.str, list(arrays[path].shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def load_weights(path: str | os.PathLike) -> Weights:
    """Reads a weight file that `save_weights` wrote, and checks it against its own hashes.

    A file without hashes, as this project wrote them at first, is loaded as it is, with
    `checked` False: there is nothing to check it against.

    Raises:
      WeightsError: the file is missing, unreadable, truncated, altered, a pickle, or a safetensors
        file that is not in this format.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise WeightsError(
            f"{path}: a PyTorch checkpoint, expected a .safetensors file written by weight_port. "
            f"Convert it first: python -m weight_port NAME --checkpoint={path}"
        )
    if not path.exists():
        raise WeightsError(
            f"{path}: no such weight file. Make it with: python -m weight_port "
            "--config=CONFIG (or see python -m weight_port --help)."
        )
    try:
        arrays, header = read_safetensors(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    if header.get("format") != FORMAT:
        raise WeightsError(
            f"{path}: found format {header.get('format')!r}, expected {FORMAT!r}. If this is a "
            f"timm checkpoint, convert it: python -m weight_port NAME --checkpoint={path}"
        )
    try:
        record = json.loads(header["record"])
    except (KeyError, ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the record in its header is missing or not JSON. Make the file again with "
            "python -m weight_port."
        ) from error
    if not isinstance(record, dict):
        raise WeightsError(
            f"{path}: the record in its header is {record!r}, expected names and values. Make the "
            "file again with python -m weight_port."
        )
    checked = _check_hashes(path, header, arrays)
    check_numbers(arrays, str(path))
    check_record(record, str(path))
    return Weights(arrays, record, path, checked=checked)


def _check_hashes(path: Path, header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the header holds hashes; raises WeightsError if what they are of was altered."""
    found = {
        "content_sha256": (lambda: content_sha256(arrays), "tensors are"),
        "record_sha256": (lambda: _text_sha256(header["record"]), "record is"),
    }
    if not any(field in header for field in found):
        return False
    for field, (compute, what) in found.items():
        now = compute()
        if header.get(field) != now:
            raise WeightsError(
                f"{path}: its {what} not what was written: found {field} {now[:16]}..., expected "
                f"{str(header.get(field))[:16]}... The file was altered or damaged; copy it again, "
                "or make it again with python -m weight_port --overwrite."
            )
    return True


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
    foreign = [key for key in arrays if key.split("/")[0] not in (*COLLECTIONS, HEAD)]
    if foreign:
        raise WeightsError(
            f"{path}: found keys {', '.join(foreign[:5])}; expected paths that start with one of "
            f"{', '.join((*COLLECTIONS, HEAD))}."
        )
    # Reshaped, because numpy makes scalars into vectors on the way.
    arrays = {key: np.ascontiguousarray(a).reshape(np.shape(a)) for key, a in arrays.items()}
    record = json.dumps(metadata, sort_keys=True)
    hashes = {"content_sha256": content_sha256(arrays), "record_sha256": _text_sha256(record)}
    content = to_safetensors(arrays, {"format": FORMAT, "record": record, **hashes})
    with writing(path, "the weight file", kind=WeightsError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return path


# --------------------------------------------------------------------------- the record


def describe(metadata: Mapping[str, Any]) -> str:
    """A weight file's record in one line, for a log; what it does not say is "unknown"."""

    def get(field: str) -> str:
        value = metadata.get(field)
        return "unknown" if value is None else f"{value:g}" if is_number(value) else str(value)

    inflation = f" by {get('inflate')}" if metadata.get("inflate") else ""
    return (
        f"{get('id')} (source {get('source')}, licence {get('licence')}) as {get('architecture')}, "
        f"{get('ndim')}D{inflation}, {get('in_channels')} input channels by {get('stem')}, "
        f"{get('norm')} norm, {get('padding')} padding, eps {get('eps')}"
    )


def check(
    metadata: Mapping[str, Any],
    expected: Mapping[str, Any],
    *,
    name: str = "the weight file",
    ignore: Sequence[str] = (),
    reestimate: int = 0,
) -> None:
    """Compares a weight file's record with what a model needs and a config says.

    Call it before `params.merge`.

    Args:
      metadata: the record, `Weights.metadata`.
      expected: as `params.requirements` gives it, any of: architecture ("efficientnet_b0"), ndim,
        in_channels, padding ("same", "symmetric"), eps, norm ("batch", "instance", "group"),
        source (a timm name), inflate, stem. None and "" are not compared.
      name: the file, for the message.
      ignore: fields of `expected` that may differ; for reproducing code that uses weights
        with another padding or eps than they were trained with.
      reestimate: patches on which running statistics will be measured anew; 0 uses the file's.

    Raises:
      WeightsError: running statistics that do not describe the weights, see `check_statistics`;
        or listing every field that differs: file, found, expected, what to do.
    """
    check_statistics(metadata, name=name, reestimate=reestimate)
    unknown = [field for field in ignore if field not in expected]
    if unknown:
        raise WeightsError(
            f"Cannot ignore {', '.join(unknown)} in {name}: the compared fields are "
            f"{', '.join(expected)}."
        )
    problems = []
    for field, wanted in expected.items():
        if field in ignore or wanted is None or wanted == "":
            continue
        found = metadata.get("id" if field == "source" else field)
        agree = _AGREE[field](metadata, wanted) if field in _AGREE else found == wanted
        if not agree:
            what = "nothing" if found is None else repr(found)
            problems.append(f"{field}: found {what}, expected {wanted!r}. {_ADVICE.get(field, '')}")
    if problems:
        raise WeightsError(
            f"{name} is not what this experiment asks for:\n  "
            + "\n  ".join(p.rstrip() for p in problems)
            + "\nMake the file that it asks for with: python -m weight_port --config=CONFIG"
        )


def check_statistics(
    metadata: Mapping[str, Any], *, name: str = "the weight file", reestimate: int = 0
) -> None:
    """Refuses running statistics that do not describe the weights they come with.

    Those of a 2D network describe an inflated one only where the taps of its kernels add up to the
    2D kernel; under `repeat` responses grow with the depth of the kernel.

    Args:
      metadata: the record.
      name: the file, for the message.
      reestimate: patches on which they will be measured anew; above 0 anything will do.

    Raises:
      WeightsError: `repeat` with statistics carried over from 2D, or statistics marked as stale.
    """
    running = metadata.get("norm") in ("batch", "frozen")
    if not running or reestimate > 0:
        return
    statistics = str(metadata.get("statistics") or "carried")  # older files say nothing
    repeats = metadata.get("ndim") == 3 and "repeat" in inflations(metadata)
    repeats = repeats and statistics.startswith("carried")
    if repeats or statistics.startswith("stale"):
        why = "inflation 'repeat' with" if repeats else "stale"
        raise WeightsError(
            f"{name}: found {why} the 2D network's running BatchNorm statistics, expected "
            "statistics that describe these weights: normalised by these, responses would be off "
            "by the depth of every kernel. Measure them anew while training starts "
            "(config.weights.reestimate=16) or for the file (python -m weight_port reestimate), or "
            "port again with --inflate=mean or --norm=instance."
        )


def inflations(metadata: Mapping[str, Any]) -> set[str]:
    """Every inflation mode that a record names, for all kernels or for some."""
    some = (str(choice).rpartition("=")[2] for choice in metadata.get("inflate_at") or ())
    return {mode for mode in (metadata.get("inflate"), *some) if mode}


_ADVICE = {
    "architecture": "Choose the encoder that the weights were made for, or port its weights.",
    "ndim": "2D and 3D weights are separate files: port again with --ndim.",
    "in_channels": "Port again with --in-channels and a --stem policy. A run's stem cannot be "
    "adapted: train it on images of so many channels without full-resolution block "
    "(model.stem_width=0), or leave its stem out: weights.skip=('.*/conv_stem/kernel',) "
    "weights.ignore=('in_channels',).",
    "padding": "The convention belongs to the weights: change the model's padding.",
    "eps": "The eps belongs to the weights: change the model's eps.",
    "norm": "Port again with --norm.",
    "source": "Change config.weights.source to what the file holds, or name another file.",
    "inflate": "Change config.weights.inflate to what the file holds, or name another file.",
    "inflate_at": "Change config.weights.inflate_at to what the file holds, or name another file.",
    "depth_taps": "Port again with --depth-kernels, or change the model's depth_kernels.",
    "factorised": "Port again with or without --factorised, or change the model's factorised.",
    "stem": "Change config.weights.stem to what the file holds, or name another file.",
}


def _norms_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """Instance and group norm hold the same tensors, scale and bias; so do batch and frozen."""
    found = metadata.get("norm")
    same = (("instance", "group"), ("batch", "frozen"))
    return found == wanted or any(found in norms and wanted in norms for norms in same)


def _eps_agree(metadata: Mapping[str, Any], wanted: float) -> bool:
    found = metadata.get("eps")
    return is_number(found) and math.isclose(found, wanted, rel_tol=1e-6)


def _sources_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """The same timm name, `model.tag`; where one has no tag, the same model.

    timm's default tag has no name of its own, and random weights have none at all.
    """
    model, _, tag = str(metadata.get("id")).partition(".")
    wanted_model, _, wanted_tag = wanted.partition(".")
    return model == wanted_model and (tag == wanted_tag or not tag or not wanted_tag)


def _inflations_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    """2D weights are not inflated, whatever the config would have inflated them by."""
    return metadata.get("ndim") == 2 or metadata.get("inflate") == wanted


def _choices_agree(metadata: Mapping[str, Any], wanted: Sequence[str]) -> bool:
    """The same choices by pattern, in the same order; a file without the field made none."""
    found = metadata.get("inflate_at") or ()
    return metadata.get("ndim") == 2 or (
        isinstance(found, list | tuple) and list(found) == list(wanted)
    )


def _depth_taps_agree(metadata: Mapping[str, Any], wanted: Sequence[int]) -> bool:
    """The same taps by stage; of an older file, without the field, the shapes will tell."""
    found = metadata.get("depth_taps")
    return found is None or (isinstance(found, list | tuple) and list(found) == list(wanted))


def _forms_agree(metadata: Mapping[str, Any], wanted: bool) -> bool:
    found = metadata.get("factorised")
    return found is None or found == wanted


def _stems_agree(metadata: Mapping[str, Any], wanted: str) -> bool:
    found = metadata.get("stem")
    if metadata.get("in_channels") == COLOURS:
        return (found == "reinit") == (wanted == "reinit")
    return found == wanted


_AGREE: dict[str, Callable[[Mapping[str, Any], Any], bool]] = {
    "norm": _norms_agree,
    "eps": _eps_agree,
    "source": _sources_agree,
    "inflate": _inflations_agree,
    "inflate_at": _choices_agree,
    "depth_taps": _depth_taps_agree,
    "factorised": _forms_agree,
    "stem": _stems_agree,
}
