"""Reading safetensors files of unknown origin: arrays and metadata, or an error with the name."""

import json
import os
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from crossdim_jax.errors import DataError
from crossdim_jax.storage.reading import read_bytes

DTYPES = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    "BF16": "<u2",  # the upper half of a float32
    "BOOL": "?",
}


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file by name, and the metadata in its header.

    bfloat16 becomes float32, of which it is the upper half; other types stay what they are.

    Raises DataError, naming the file, if it is missing, no regular file, damaged (every length is
    compared with the bytes that are there before anything is made of it), or holds a type that is
    not in `DTYPES`, such as float8, whose numbers mean nothing without their scales.
    """
    path = Path(path)
    content = read_bytes(path)
    try:
        tensors = deserialize(content)  # checks the header, every length and every offset
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        del content
        return {name: _array(path, name, **found) for name, found in tensors}, metadata
    except (SafetensorError, ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: not a readable safetensors file ({error}); it is damaged, cut short, or of "
            "another kind; make, copy or download it again"
        ) from error


def _array(path: Path, name: str, *, dtype: str, shape: list[int], data: bytearray) -> np.ndarray:
    if dtype not in DTYPES:
        raise DataError(
            f"{path}: its tensor {name!r} is of type {dtype}; expected one of "
            f"{', '.join(DTYPES)}. Save it as F32 or F16"
        )
    array = np.ndarray(shape, DTYPES[dtype], data)
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array
