"""Safetensors files of every kind end in arrays or in an error that names them."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save

from crossdim_jax.errors import DataError
from crossdim_jax.weights.tensors import DTYPES, read_safetensors


def write(path, header, data=b"", length=None):
    """A file of a header, JSON or bytes, and data, whatever they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def tensor(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "BF16"])
def test_every_type_comes_back_as_it_was_written(dtype, tmp_path):
    kind = np.dtype(DTYPES[dtype])
    arrays = {
        "a": np.arange(6).reshape(2, 3).astype(kind),
        "scalar": np.ones((), kind),
        "empty": np.zeros((0, 4), kind),
    }
    path = tmp_path / "w.safetensors"
    path.write_bytes(save(arrays, {"format": "x"}))
    found, metadata = read_safetensors(path)
    assert metadata == {"format": "x"} and found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        found[name][...] = 0  # of one's own


def test_bfloat16_becomes_float32(tmp_path):
    numbers = np.array([1.0, -2.5, 1e30, np.nan], np.float32)
    half = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    path = write(tmp_path / "w.safetensors", {"a": tensor("BF16", (4,))}, half.tobytes())
    found = read_safetensors(path)[0]["a"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, numbers, rtol=2**-7)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_types_that_mean_nothing_alone_are_refused_by_name(dtype, tmp_path):
    path = write(tmp_path / "w.safetensors", {"a/b": tensor(dtype, (8,))}, bytes(8))
    with pytest.raises(DataError, match=rf"w.safetensors: its tensor 'a/b' is of type {dtype}"):
        read_safetensors(path)


@pytest.mark.parametrize(
    "header, data, length",
    [
        ({"a": tensor(offsets=(0, 8))}, b"", None),  # shorter than it says
        ({"a": tensor(shape=(10**12,), offsets=(0, 4 * 10**12))}, bytes(8), None),
        ({"a": tensor(shape=(2**62, 2**62))}, bytes(8), None),
        ({"a": tensor(shape=(0, 2**63), offsets=(0, 0))}, b"", None),
        ({"a": tensor(shape=(-1, -2))}, bytes(8), None),
        ({"a": tensor(), "b": tensor()}, bytes(8), None),  # the same bytes twice
        ({"a": tensor(offsets=(4, 12))}, bytes(12), None),  # a hole
        ({"a": tensor(offsets=(8, 0))}, bytes(8), None),
        ({"a": tensor()}, bytes(9), None),  # more than it says
        ({"a": tensor()}, bytes(8), 2**63),
        ({"a": tensor()}, bytes(8), 10**7),
        ({"a": tensor("C64", (1,))}, bytes(8), None),
        ({"a": tensor("F4", (2,), (0, 1))}, bytes(1), None),
        ({"a": tensor(), "__metadata__": {"format": 3}}, bytes(8), None),
        ({"a": tensor(), "__metadata__": ["format"]}, bytes(8), None),
        (b"[" * 100_000, b"", None),
        (b'{"a":' * 100_000, b"", None),
        (b"{", b"", None),
        (b"\xff\xfe", b"", None),
        (b"", b"", None),
        ([], b"", None),
    ],
)
def test_damaged_headers_are_refused(header, data, length, tmp_path):
    path = write(tmp_path / "w.safetensors", header, data, length)
    with pytest.raises(DataError, match="w.safetensors: (not a readable|its tensor)"):
        read_safetensors(path)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for name, kind in (("pipe", "a named pipe"), ("folder", "a folder"), ("zero", "a device")):
        with pytest.raises(DataError, match=f"{name}.safetensors: is {kind}"):
            read_safetensors(tmp_path / f"{name}.safetensors")
