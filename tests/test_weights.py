"""A weight file is what was written, and is for the network that loads it; or it is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from crossdim_jax import models, params
from crossdim_jax.errors import WeightsError
from crossdim_jax.weights import HEAD, check_statistics, content_sha256, inflations

RECORD = {
    "source": "timm",
    "id": "tf_efficientnet_b0.ns_jft_in1k",
    "architecture": "efficientnet_b0",
    "ndim": 3,
    "in_channels": 16,
    "padding": "same",
    "eps": 1e-3,
    "norm": "instance",
    "inflate": "repeat",
    "stem": "tile",
    "depth_kernels": [3, 3, 3, 5, 3, 5, 5, 3],
    "factorised": False,
    "statistics": "dropped",
}


@pytest.fixture
def arrays(rng):
    shapes = {"params/encoder/b/kernel": (3, 3, 4, 8), "params/encoder/a/scale": (8,)}
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.fixture
def file(tmp_path, arrays):
    return params.save_weights(tmp_path / "w.safetensors", arrays, RECORD)


def header(path):
    with safe_open(path, framework="numpy") as opened:
        return dict(opened.metadata())


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
    assert params.load_weights(file).checked


@pytest.mark.parametrize("at", [0.02, 0.3, 0.55, 0.999])
def test_one_altered_byte_anywhere_is_refused(at, file):
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="w.safetensors: .*(again|python -m weight_port)"):
        params.load_weights(file)


def test_altered_tensors_are_named_as_such(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(WeightsError, match="its tensors are not what was.*content_sha256.*copy it"):
        params.load_weights(file)


def test_an_altered_record_is_refused(file, arrays):
    """A convention changed by hand: the tensors alone would not tell."""
    held = header(file)
    held["record"] = held["record"].replace('"same"', '"symmetric"')
    save_file(arrays, file, held)
    with pytest.raises(WeightsError, match="its record is not what was written"):
        params.load_weights(file)


def test_a_hash_that_was_taken_out_is_missed(file, arrays):
    held = header(file)
    del held["record_sha256"]
    save_file(arrays, file, held)
    with pytest.raises(WeightsError, match="expected None"):
        params.load_weights(file)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(keep, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(WeightsError, match="w.safetensors: not a readable.*cut short"):
        params.load_weights(file)


def test_files_from_before_hashes_are_loaded_unchecked(file, arrays):
    save_file(arrays, file, {"format": params.FORMAT, "record": json.dumps(RECORD)})
    weights = params.load_weights(file)
    assert not weights.checked and weights.metadata == RECORD
    params.save_weights(file, weights.arrays, weights.metadata)
    assert params.load_weights(file).checked


def test_a_classification_head_can_be_kept(tmp_path, arrays):
    arrays = arrays | {f"{HEAD}/encoder/classifier/bias": np.zeros(10, np.float32)}
    path = params.save_weights(tmp_path / "h.safetensors", arrays, {})
    assert params.load_weights(path).arrays.keys() == arrays.keys()


# ------------------------------------------------------------------ for another network


@pytest.fixture(scope="module")
def needs():
    """What DX-Net needs, with the config's own words."""
    model = models.build("dxnet")
    image = jax.ShapeDtypeStruct((1, 32, 32, 32, 4), jnp.float32)
    claims = {"source": RECORD["id"], "inflate": "repeat", "stem": "tile"}
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return params.requirements(model, variables) | claims


def test_the_file_that_is_asked_for_is_taken(file, needs):
    params.check(params.load_weights(file).metadata, needs)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"architecture": "efficientnet_b4"}, "architecture: found 'efficientnet_b4', expected"),
        ({"padding": "symmetric"}, "padding: found 'symmetric', expected 'same'"),
        ({"eps": 1e-5}, "eps: found 1e-05, expected 0.001"),
        ({"in_channels": 4}, "in_channels: found 4, expected 16"),
    ],
    ids=["architecture", "padding", "eps", "channels"],
)
def test_weights_of_another_network_are_refused(change, match, arrays, needs, tmp_path):
    path = params.save_weights(tmp_path / "other.safetensors", arrays, RECORD | change)
    weights = params.load_weights(path)
    with pytest.raises(WeightsError, match=f"(?s)other.safetensors is not.*{match}"):
        params.check(weights.metadata, needs, name=weights.name)


# ------------------------------------------------------------------ running statistics


BATCH = RECORD | {"norm": "batch", "statistics": "carried"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"norm": "frozen"},
        {"statistics": None},  # from before the record said so
        {"inflate": "mean", "inflate_at": ["blocks_1_.*=repeat"]},
        {"statistics": "stale"},
        {"inflate": "mean", "statistics": "stale"},
    ],
    ids=str,
)
def test_statistics_that_do_not_describe_the_weights_are_refused(change, needs):
    record = BATCH | change
    expected = needs | {"norm": record["norm"], "inflate": record["inflate"], "inflate_at": None}
    with pytest.raises(WeightsError, match=r"w.safetensors: found .*statistics.*reestimate=16"):
        params.check(record, expected, name="w.safetensors")
    check_statistics(record, reestimate=8)  # they will be measured anew


@pytest.mark.parametrize(
    "change",
    [
        {"inflate": "mean"},
        {"norm": "instance", "statistics": "dropped"},
        {"statistics": "reestimated (8)"},
        {"ndim": 2, "inflate": None},
    ],
    ids=str,
)
def test_statistics_that_do_are_taken(change):
    check_statistics(BATCH | change)


def test_all_modes_of_a_record_are_found():
    assert inflations({"inflate": "mean", "inflate_at": ["a=b_.*=center"]}) == {"mean", "center"}
    assert inflations({"inflate": None}) == set()
