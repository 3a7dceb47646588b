"""PyTorch's checkpoints, in its zip format and the one before, without PyTorch. Nothing is run."""

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crossdim_jax.errors import DataError, WeightsError, first_of
from crossdim_jax.storage.reading import read_bytes
from weight_port.formats import torch_pickle
from weight_port.formats.torch_pickle import NoTensor, Refused, Storage, Tensor

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
SHARED = 4  # tensors that share their numbers may have so many times what the file has
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # at the start of the format without an archive

# PyTorch's storage -> numpy's type, little-endian. bfloat16 is the upper half of a float32.
DTYPES = {
    **{"DoubleStorage": "<f8", "FloatStorage": "<f4", "HalfStorage": "<f2"},
    **{"BFloat16Storage": "<u2", "LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2"},
    **{"CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"},
}
# Types that are not read: their names, where they are not their storage's, and their bytes.
_NAMES = {"ComplexFloat": "complex64", "ComplexDouble": "complex128"}
_WIDTHS = {"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16, "QInt32Storage": 4}

Numbers = Callable[[Storage], bytes]


def read(path: Path) -> tuple[Any, Callable[[Mapping[str, Any]], dict[str, np.ndarray]]]:
    """Content of a checkpoint, and the reader of its tensors.

    Returns:
      the file's content as plain values, in which tensors are described only; and a function that
      makes arrays of some of them, by name, and raises WeightsError naming those that are not plain
      numbers, all of them in the file. float16 and bfloat16 become float32, as does float64.

    Raises WeightsError, naming the file: it is missing, no regular file, damaged, or holds code or
    objects, of which nothing is run.
    """
    try:
        content = read_bytes(path)
    except DataError as error:
        raise WeightsError(str(error)) from error
    try:
        open_ = _open_archive if content[:4] == b"PK\x03\x04" else _open_stream
        held, numbers, order = open_(path, io.BytesIO(content), len(content))
    except Refused as error:
        raise WeightsError(
            f"{path}: holds something other than tensors and plain values: {str(error)[:200]}; "
            "nothing in it was run. Where you trust the file, open it with PyTorch and save the "
            "bare state dict, better as .safetensors."
        ) from error
    except WeightsError:
        raise
    except Exception as error:  # of a damaged file, nearly anything
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch checkpoint ({_line(error)}); it is damaged, cut "
            "short, or of another kind. Download it again."
        ) from error

    def arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
        _check_tensors(path, tensors, len(content))
        try:
            return {name: _array(tensor, numbers, order) for name, tensor in tensors.items()}
        except (KeyError, ValueError, OverflowError, MemoryError) as error:
            raise WeightsError(
                f"{path}: cannot be read as a PyTorch checkpoint ({_line(error)}); it is damaged "
                "or cut short. Download it again."
            ) from error

    return held, arrays


# --------------------------------------------------------------------------- the two formats


def _open_archive(path: Path, file: BinaryIO, size: int) -> tuple[Any, Numbers, str]:
    """Content, numbers and byte order of a zip, PyTorch's format since version 1.6."""
    with zipfile.ZipFile(file) as archive:
        promised = sum(entry.file_size for entry in archive.infolist())
        if promised > size:
            raise WeightsError(
                f"{path}: promises {promised} bytes and has {size}; PyTorch writes its numbers "
                "uncompressed, so this is damaged or no checkpoint. Download it again."
            )
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next((name for name in entries if name.rpartition("/")[2] == "data.pkl"), None)
    if name is None:
        raise ValueError("an archive without data.pkl")
    folder = name.removesuffix("data.pkl")
    held = torch_pickle.read(io.BytesIO(entries[name]))
    order = entries.get(f"{folder}byteorder", b"little").decode("ascii")
    return held, lambda storage: entries[f"{folder}data/{storage.key}"], order


def _open_stream(path: Path, file: BinaryIO, size: int) -> tuple[Any, Numbers, str]:
    """Content, numbers and byte order of PyTorch's format before version 1.6.

    Pickles of a magic number, a version, the machine, the content and the storages' names; then
    each storage's count and numbers.
    """
    start = torch_pickle.read(file)
    if start != MAGIC or torch_pickle.read(file) != PROTOCOL:
        raise ValueError("no PyTorch file")
    machine = torch_pickle.read(file)
    order = "little" if machine.get("little_endian", True) else "big"
    storages: dict[str, Storage] = {}
    held = torch_pickle.read(file, storages)
    found = {}
    for key in torch_pickle.read(file):
        count = int.from_bytes(file.read(8), order)
        width = _width(storages[key].kind)
        found[key] = file.read(count * width) if count * width <= size else b""
        if len(found[key]) != count * width:
            raise ValueError("the numbers end early")
    return held, lambda storage: found[storage.key], order


# --------------------------------------------------------------------------- tensors


def _check_tensors(path: Path, tensors: Mapping[str, Any], size: int) -> None:
    """Raises WeightsError for tensors that are not plain, or larger than what they are made of."""
    problems = {name: _problem(tensor) for name, tensor in tensors.items()}
    found = [f"{name[:120]!r} {problem}" for name, problem in problems.items() if problem]
    if found:
        raise WeightsError(
            f"{path}: {len(found)} tensors cannot be ported:\n  {first_of(found)}\n"
            "Save a state dict of plain tensors in float32 or float16."
        )
    total = sum(_bytes(tensor) for tensor in tensors.values())
    if total > SHARED * size:
        raise WeightsError(
            f"{path}: its tensors take {total} bytes and the file has {size}; they share their "
            "numbers beyond what weights do. Save them one by one (tensor.clone())."
        )


def _width(kind: str) -> int:
    """Bytes of one number of a storage."""
    return np.dtype(DTYPES[kind]).itemsize if kind in DTYPES else _WIDTHS.get(kind, 1)


def _bytes(tensor: Tensor) -> int:
    return torch_pickle.taken(tensor) * _width(tensor.storage.kind)


def _problem(tensor: Tensor | NoTensor) -> str | None:
    """Reason why a tensor cannot be an array, in words; None if it can."""
    if isinstance(tensor, NoTensor):
        return tensor.problem
    kind = tensor.storage.kind
    if kind not in DTYPES:
        name = kind.removesuffix("Storage")
        return f"is of type torch.{_NAMES.get(name, name.lower())}"
    there = tensor.storage.count
    if max(torch_pickle.taken(tensor), torch_pickle.reach(tensor)) > there:
        made_of = there * _width(kind)
        return f"has {tensor.shape} numbers, {_bytes(tensor)} bytes, made of {made_of} in the file"
    return None


def _array(tensor: Tensor, numbers: Numbers, order: str) -> np.ndarray:
    dtype = np.dtype(DTYPES[tensor.storage.kind])
    dtype = dtype.newbyteorder(">") if order == "big" else dtype
    content = numbers(tensor.storage)
    if len(content) < max(torch_pickle.reach(tensor), tensor.offset) * dtype.itemsize:
        raise ValueError("the numbers end early")
    flat = np.frombuffer(content, dtype)
    strides = [step * dtype.itemsize for step in tensor.strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides)
    array = np.array(view, dtype.newbyteorder("="))  # a copy: views of a file share their memory
    if tensor.storage.kind == "BFloat16Storage":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if array.dtype.kind == "f" else array


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
