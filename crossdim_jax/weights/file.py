"""The weight file: an encoder's ported parameters, and the record of where they come from.

One safetensors file. Its keys are paths, see `paths`; its header holds the `record` as JSON
(`weight_port` writes both). The header also holds two hashes, of the tensors and of the record, so
that a file that was altered or damaged after it was written is refused.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as to_safetensors

from crossdim_jax.errors import DataError, WeightsError
from crossdim_jax.storage.files import write_bytes, writing
from crossdim_jax.weights.gate import check_numbers
from crossdim_jax.weights.paths import COLLECTIONS, HEAD
from crossdim_jax.weights.record import check_record
from crossdim_jax.weights.tensors import read_safetensors

FORMAT = "crossdim_jax weights 1"  # raise the number when an older reader would misread a file
PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Content of a weight file.

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


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    """True if the header holds hashes. Raises WeightsError if what they are of was altered."""
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
