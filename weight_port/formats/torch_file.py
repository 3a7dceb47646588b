"""PyTorch checkpoints of unknown origin: their tensors as arrays, and nothing in them is run."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from crossdim_jax.errors import DataError, WeightsError, first_of
from crossdim_jax.storage.reading import read_bytes

NESTED_UNDER = ("state_dict", "model", "model_state")
SHARED = 4  # tensors that share their numbers may have so many times what the file has


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, plain or under one of `NESTED_UNDER`, by name.

    Raises WeightsError, naming the file: it is missing, no regular file, damaged, holds code or
    objects, or anything but plain tensors of numbers that are all in the file.
    """
    torch = optional("torch")
    try:
        # As a whole: from a file, a read of as many bytes as some length says asks for them first.
        file = io.BytesIO(read_bytes(path))
    except DataError as error:
        raise WeightsError(str(error)) from error
    size = _check_archive(path, file)
    content = _load(torch, path, file)
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = isinstance(content, Mapping) and all(isinstance(key, str) for key in content)
    if not named or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise WeightsError(
            f"{path}: found {_contents(content)}, expected a state dict (names -> tensors), plain "
            f"or under one of {', '.join(NESTED_UNDER)}."
        )
    try:
        _check_tensors(torch, path, content, size)
        return {name: _to_numpy(tensor) for name, tensor in content.items()}
    except (RuntimeError, NotImplementedError, TypeError, ValueError, MemoryError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"{path}: its tensors cannot be read ({_line(error)}); save a bare state dict of "
            "plain tensors, better as .safetensors."
        ) from error


def optional(module: str) -> Any:
    """The named optional module. Raises WeightsError that says how to install it."""
    try:
        return __import__(module)
    except ImportError as error:
        raise WeightsError(
            f"{module} is not installed, and this needs it: pip install 'crossdim_jax[port]'. "
            "Only .safetensors checkpoints can be ported without it."
        ) from error


def _check_archive(path: Path, file: BinaryIO) -> int:
    """The bytes of the file; WeightsError if it is an archive of more than is in it."""
    size = file.seek(0, 2)
    file.seek(0)
    archive = file.read(4) == b"PK\x03\x04"
    if archive:
        try:
            with zipfile.ZipFile(file) as entries:
                promised = sum(entry.file_size for entry in entries.infolist())
        except Exception as error:  # of damaged archives it raises nearly anything
            raise WeightsError(
                f"{path}: cannot be read as a PyTorch checkpoint ({_line(error)}); it is damaged "
                "or cut short. Download it again."
            ) from error
        if promised > size:
            raise WeightsError(
                f"{path}: promises {promised} bytes and has {size}; PyTorch writes its numbers "
                "uncompressed, so this is damaged or no checkpoint. Download it again."
            )
    file.seek(0)
    return size


def _load(torch: Any, path: Path, file: BinaryIO) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text proposes to run the code after all, so it is not repeated here.
        raise WeightsError(
            f"{path}: holds something other than tensors (pickled code or objects) or is not a "
            "PyTorch file; nothing in it was run. Save the bare state dict, better as "
            ".safetensors, where you trust the file."
        ) from error
    except Exception as error:  # a damaged archive may raise nearly anything
        raise WeightsError(
            f"{path}: cannot be read as a PyTorch checkpoint "
            f"({type(error).__name__}); it is damaged or cut short. Download it again."
        ) from error


def _contents(content: Any) -> str:
    """What was found, in few words; of a mapping its first keys and what they lead to."""
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    shown = []
    for key, value in list(content.items())[:5]:
        name = repr(key) if isinstance(key, str | int | float) else f"a {type(key).__name__}"
        shown.append(f"{name[:80]}: {type(value).__name__}")
    return "{" + ", ".join(shown) + (", ...}" if len(content) > 5 else "}")


def _check_tensors(torch: Any, path: Path, tensors: Mapping[str, Any], size: int) -> None:
    """Raises WeightsError for tensors that are not plain, or larger than what they are made of."""
    problems = {name: _problem(torch, tensor) for name, tensor in tensors.items()}
    found = [f"{name[:120]!r} {problem}" for name, problem in problems.items() if problem]
    if found:
        raise WeightsError(
            f"{path}: {len(found)} tensors cannot be ported:\n  {first_of(found)}\n"
            "Save a state dict of plain tensors in float32 or float16."
        )
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > SHARED * size:
        raise WeightsError(
            f"{path}: its tensors take {total} bytes and the file has {size}; they share their "
            "numbers beyond what weights do. Save them one by one (tensor.clone())."
        )


def _problem(torch: Any, tensor: Any) -> str | None:
    """What keeps a tensor from being an array, in words."""
    if tensor.is_nested or tensor.layout != torch.strided:
        return f"is not dense ({tensor.layout})"
    if tensor.is_meta:
        return "has a shape and no numbers (a meta tensor)"
    if tensor.is_quantized or tensor.is_complex():
        return f"is of type {tensor.dtype}"
    if tensor.is_floating_point() and tensor.dtype not in (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    ):
        return f"is of type {tensor.dtype}"
    taken, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if taken > there:
        return f"has {tuple(tensor.shape)} numbers, {taken} bytes, made of {there} in the file"
    return None


def _to_numpy(tensor: Any) -> np.ndarray:
    tensor = tensor.detach().resolve_conj().resolve_neg()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
