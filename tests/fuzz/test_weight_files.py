"""Damaged weight files and checkpoints: read, or refused by name."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from crossdim_jax.weights.file import load_weights, save_weights
from tests.fuzz import harness
from tests.fuzz.harness import Format
from tests.weight_record import RECORD
from weight_port.commands import inspect
from weight_port.formats import checkpoint

KERNEL = np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3)


def _ours(folder: Path) -> Sequence[bytes]:
    """With hashes and, so that records and tensors are looked at when they are changed, without."""
    arrays = {
        "params/encoder/conv_stem/kernel": KERNEL,
        "batch_stats/encoder/bn1/var": np.ones(3, np.float32),
    }
    record = RECORD | {"certificate": {"certificate": 0}, "fresh": ["a"], "versions": {"jax": "1"}}
    content = save_weights(folder / "w.safetensors", arrays, record).read_bytes()
    return [content, content.replace(b"_sha256", b"_sha255")]


def _inspect(path: Path) -> object:
    return inspect.lines(load_weights(path))


def _checkpoint(folder: Path) -> Sequence[bytes]:
    half = KERNEL.astype(np.float16)
    return [save({"conv_stem.weight": KERNEL, "bn1.weight": half, "n": np.ones((), np.int64)})]


def _pickled(folder: Path) -> Sequence[bytes]:
    torch = pytest.importorskip("torch")
    content = {"conv_stem.weight": torch.from_numpy(KERNEL), "n": torch.tensor(7)}
    found = []
    for nested, archive in itertools.product((False, True), repeat=2):
        path = folder / "x.pth"
        state = {"state_dict": content, "epoch": 3} if nested else content
        torch.save(state, path, _use_new_zipfile_serialization=archive)
        found.append(path.read_bytes())
    return found


def _keras(folder: Path) -> Sequence[bytes]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["stem_conv/stem_conv/kernel:0"] = KERNEL
        file["layers/conv2d/vars/0"] = KERNEL
    return [(folder / "x.h5").read_bytes()]


FORMATS = (
    Format("weight file", ".safetensors", _ours, _inspect),
    Format("safetensors checkpoint", ".safetensors", _checkpoint, checkpoint.read),
    Format("torch checkpoint", ".pth", _pickled, checkpoint.read),
    Format("Keras weights", ".h5", _keras, checkpoint.read, few=30),
)


@harness.few_and_thousands(FORMATS)
def test_damaged_files_are_read_or_named(name, count, seed, tmp_path):
    pytest.importorskip({"torch checkpoint": "torch", "Keras weights": "h5py"}.get(name, "json"))
    harness.run(__name__, name, tmp_path, count=count, seed=seed)
