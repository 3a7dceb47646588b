"""A weight file comes back as it was written, or it is refused."""

import json
import os

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.file import FORMAT, content_sha256, load_weights, save_weights
from crossdim_jax.weights.paths import HEAD
from tests.weight_record import RECORD


@pytest.fixture
def arrays(rng):
    shapes = {
        "params/encoder/b/kernel": (3, 3, 4, 8),
        "params/encoder/a/scale": (8,),
        "batch_stats/encoder/a/mean": (8,),
    }
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture
def file(tmp_path, arrays):
    return save_weights(tmp_path / "w.safetensors", arrays, RECORD)


def header(path):
    with safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata())


# ------------------------------------------------------------------ writing


def test_files_come_back_as_written(tmp_path, arrays):
    path = save_weights(tmp_path / "a" / "w.safetensors", arrays, RECORD)
    weights = load_weights(path)
    assert weights.metadata == RECORD and weights.path == path
    assert weights.arrays.keys() == arrays.keys()
    assert all(np.array_equal(weights.arrays[key], arrays[key]) for key in arrays)
    assert os.listdir(path.parent) == ["w.safetensors"]


def test_transposed_views_are_written_in_their_own_order(tmp_path, rng):
    kernel = rng.normal(size=(4, 3, 2)).astype(np.float32).transpose(2, 0, 1)
    path = save_weights(tmp_path / "w.safetensors", {"params/encoder/k": kernel}, {})
    np.testing.assert_array_equal(load_weights(path).arrays["params/encoder/k"], kernel)


def test_a_failed_write_leaves_the_old_file(tmp_path, arrays, monkeypatch):
    path = save_weights(tmp_path / "w.safetensors", arrays, RECORD)
    before = path.read_bytes()

    def full(_):
        assert len(list(tmp_path.glob(".*.tmp.safetensors"))) == 1  # what a stop removes
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match=r"w.safetensors: .*No space left"):
        save_weights(path, {}, {})
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_weights_are_as_readable_as_other_files(tmp_path, arrays):
    path = save_weights(tmp_path / "w.safetensors", arrays, RECORD)
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_saving_refuses_other_suffixes_and_collections(tmp_path, arrays):
    with pytest.raises(WeightsError, match="end with .safetensors"):
        save_weights(tmp_path / "w.npz", arrays, {})
    with pytest.raises(WeightsError, match="found keys encoder/a"):
        save_weights(tmp_path / "w.safetensors", {"encoder/a": np.zeros(1)}, {})


def test_a_classification_head_can_be_kept(tmp_path, arrays):
    arrays = arrays | {f"{HEAD}/encoder/classifier/bias": np.zeros(10, np.float32)}
    path = save_weights(tmp_path / "h.safetensors", arrays, {})
    assert load_weights(path).arrays.keys() == arrays.keys()


# ------------------------------------------------------------------ what cannot be read


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_files_are_named(keep, tmp_path, arrays):
    path = save_weights(tmp_path / "w.safetensors", arrays, RECORD)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"w.safetensors: not a readable safetensors"):
        load_weights(path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(keep, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(WeightsError, match="w.safetensors: not a readable.*cut short"):
        load_weights(file)


def test_files_of_other_kinds_say_what_to_do(tmp_path):
    with pytest.raises(WeightsError, match=r"gone.safetensors: no such.*weight_port"):
        load_weights(tmp_path / "gone.safetensors")
    with pytest.raises(
        WeightsError, match=r"w.pth: a PyTorch.*weight_port NAME --checkpoint=.*w.pth"
    ):
        load_weights(tmp_path / "w.pth")
    path = tmp_path / "timm.safetensors"
    save_file({"conv_stem.weight": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match=r"timm.safetensors: found format None.*--checkpoint"):
        load_weights(path)
    save_file({}, path, {"format": FORMAT, "record": "{"})
    with pytest.raises(WeightsError, match="record in its header"):
        load_weights(path)
    save_file({}, path, {"format": FORMAT, "record": "[1]"})
    with pytest.raises(WeightsError, match=r"record in its header is \[1\]"):
        load_weights(path)


# ------------------------------------------------------------------ hashes


def test_the_hash_is_of_paths_types_shapes_and_values(arrays):
    same = dict(reversed(arrays.items()))
    assert content_sha256(same) == content_sha256(arrays)
    transposed = {key: np.asfortranarray(value) for key, value in arrays.items()}
    assert content_sha256(transposed) == content_sha256(arrays)
    scale = arrays["params/encoder/a/scale"]
    others = [
        {"params/encoder/c/scale": scale},
        {"params/encoder/a/scale": scale.astype(np.float64)},
        {"params/encoder/a/scale": scale.reshape(2, 4)},
        {"params/encoder/a/scale": np.nextafter(scale, np.inf)},
        {"params/encoder/a/scale": scale.view(np.int32)},
        {},
    ]
    hashes = [content_sha256(content) for content in [{"params/encoder/a/scale": scale}, *others]]
    assert len(set(hashes)) == len(hashes)


def test_the_file_holds_its_hash_and_agrees(file, arrays):
    assert header(file)["content_sha256"] == content_sha256(arrays)
    assert load_weights(file).checked


@pytest.mark.parametrize("at", [0.02, 0.3, 0.55, 0.999])
def test_one_altered_byte_anywhere_is_refused(at, file):
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="w.safetensors: .*(again|python -m weight_port)"):
        load_weights(file)


def test_altered_tensors_are_named_as_such(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="its tensors are not what was.*content_sha256.*copy it"):
        load_weights(file)


def test_an_altered_record_is_refused(file, arrays):
    """A convention changed by hand: the tensors alone would not tell."""
    held = header(file)
    held["record"] = held["record"].replace('"same"', '"symmetric"')
    save_file(arrays, file, held)
    with pytest.raises(WeightsError, match="its record is not what was written"):
        load_weights(file)


def test_a_hash_that_was_taken_out_is_missed(file, arrays):
    held = header(file)
    del held["record_sha256"]
    save_file(arrays, file, held)
    with pytest.raises(WeightsError, match="expected None"):
        load_weights(file)


def test_files_from_before_hashes_are_loaded_unchecked(file, arrays):
    save_file(arrays, file, {"format": FORMAT, "record": json.dumps(RECORD)})
    weights = load_weights(file)
    assert not weights.checked and weights.metadata == RECORD
    save_weights(file, weights.arrays, weights.metadata)
    assert load_weights(file).checked


# ------------------------------------------------------------------ what cannot be weights


@pytest.mark.parametrize(
    "path, array, says",
    [
        ("params/encoder/b/kernel", [1.0, np.nan], "NaN or infinite"),
        ("params/encoder/b/kernel", [1.0, -np.inf], "NaN or infinite"),
        ("params/encoder/b/kernel", np.array([1e300]), "NaN or infinite"),  # in float32
        ("params/encoder/b/kernel", np.array([1, 2]), "int64; expected floating"),
        ("params/encoder/b/kernel", np.array([True]), "bool; expected floating"),
        ("batch_stats/encoder/a/var", [1.0, -1e-3], "negative variances"),
    ],
)
def test_numbers_that_cannot_be_weights_are_refused_by_name(path, array, says, tmp_path, arrays):
    if isinstance(array, list):
        array = np.array(array, np.float32)
    file = save_weights(tmp_path / "w.safetensors", arrays | {path: array}, RECORD)
    with pytest.raises(WeightsError, match=rf"w.safetensors: 1 tensors[^:]*:\n  {path} .*{says}"):
        load_weights(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"ndim": "3"},
        {"ndim": 4},
        {"eps": float("nan")},
        {"eps": [1e-3]},
        {"eps": 10**400},
        {"inflate": 3},
        {"inflate_at": "blocks=center"},
        {"in_channels": -1},
        {"in_channels": 10**30},
        {"depth_kernels": "3"},
        {"unused": [1]},
        {"versions": ["jax"]},
        {"certificate": "good"},
        {"licence": {}},
    ],
)
def test_a_record_of_other_types_is_refused_by_field(changes, tmp_path, arrays):
    file = save_weights(tmp_path / "w.safetensors", arrays, RECORD | changes)
    (field,) = changes
    with pytest.raises(WeightsError, match=f"w.safetensors: its record is damaged:\n  {field}: "):
        load_weights(file)


def test_a_record_nested_beyond_reading_is_refused(tmp_path, arrays):
    file = tmp_path / "w.safetensors"
    save_file(arrays, file, {"format": FORMAT, "record": "[" * 100_000})
    with pytest.raises(WeightsError, match="w.safetensors: the record in its header"):
        load_weights(file)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match="pipe.safetensors: is a named pipe"):
        load_weights(tmp_path / "pipe.safetensors")
    with pytest.raises(WeightsError, match=": is a folder"):
        load_weights(tmp_path)
