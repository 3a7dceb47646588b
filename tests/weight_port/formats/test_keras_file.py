"""Keras' three kinds of weight files, written as Keras writes them, are read by its names."""

import io
import json
import zipfile

import numpy as np
import pytest

from crossdim_jax.errors import WeightsError
from tests.weight_port import tiny
from weight_port import recognise
from weight_port.families import efficientnet as family
from weight_port.formats import keras_file
from weight_port.names import Name

h5py = pytest.importorskip("h5py")

TINY = Name("efficientnet_tiny", "efficientnet_tiny", "efficientnet_tiny", "same", 1e-3)
NUMBERS = {"kernel": 0, "bias": 1, "gamma": 0, "beta": 1, "moving_mean": 2, "moving_variance": 3}
CLASSES = {"conv2d": "Conv2D", "depthwise_conv2d": "DepthwiseConv2D", "dense": "Dense"}
CLASSES |= {"batch_normalization": "BatchNormalization"}


@pytest.fixture(autouse=True)
def _registered():
    with tiny.registered():
        yield


def in_keras(scheme):
    """The tiny network's tensors in Keras' layout: layer, name, array; in the order of layers."""
    (chosen,) = (each for each in family.SCHEMES if each.name == scheme)
    tensors = tiny.source().arrays
    for name, target in chosen.names("efficientnet_tiny").items():
        if target in tensors:
            array, order = tensors[target], (2, 3, 1, 0)
            if array.ndim == 4:
                array = array.transpose((2, 3, 0, 1) if "conv_dw" in target else order)
            yield *name.split("."), array


def legacy(path):
    """Keras 2: a group a layer, in it the variables by their full names."""
    with h5py.File(path, "w") as file:
        for layer, name, array in in_keras("keras"):
            name = f"depthwise_{name}" if "dwconv" in layer else name
            file[f"model_weights/{layer}/{layer}/{name}:0"] = array
            file[f"optimizer_weights/Adam/v/{layer}/{name}:0"] = np.square(array)
        file["model_weights/normalization/normalization/mean:0"] = np.zeros(3, np.float32)
        file["optimizer_weights/iteration:0"] = 3


def numbered(path):
    """Keras 3: layers by class and number, variables by number."""
    with h5py.File(path, "w") as file:
        for layer, name, array in in_keras("keras-numbers"):
            file[f"layers/{layer}/vars/{NUMBERS[name]}"] = array
        file["layers/normalization/vars/0"] = np.zeros((1, 1, 1, 3), np.float32)
        file["optimizer/vars/0"] = 3


def archived(path):
    """Keras 3: an archive of such a file and of the layers' names and classes."""
    weights = io.BytesIO()
    numbered(weights)
    names = dict.fromkeys(layer for layer, *_ in in_keras("keras"))
    numbers = dict.fromkeys(layer for layer, *_ in in_keras("keras-numbers"))
    layers = [{"class_name": "InputLayer", "config": {"name": "input_layer"}}]
    for name, number in zip(names, numbers, strict=True):
        kind = number.rstrip("0123456789").rstrip("_") if number[-1].isdigit() else number
        kind = {"conv": "conv2d", "depthwise_conv": "depthwise_conv2d"}.get(kind, kind)
        layers.append({"class_name": CLASSES[kind], "config": {"name": name}})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", json.dumps({"config": {"layers": layers}}))
        archive.writestr("model.weights.h5", weights.getvalue())


@pytest.mark.parametrize(
    ("write", "file", "scheme"),
    [
        (legacy, "x.h5", "keras"),
        (numbered, "x.weights.h5", "keras-numbers"),
        (archived, "x.keras", "keras"),
    ],
)
def test_all_three_kinds_become_the_same_network(write, file, scheme, tmp_path):
    write(tmp_path / file)
    arrays = keras_file.read(tmp_path / file)
    made = recognise.recognise(arrays, TINY, file=file)
    assert made.place.scheme.name == scheme
    expected = tiny.source().arrays
    assert made.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(made.arrays[name], array)
    assert any("normalization." in name for name in made.others)


def test_a_deeper_network_is_not_taken_for_a_shallower_one(tmp_path):
    legacy(tmp_path / "x.h5")
    arrays = keras_file.read(tmp_path / "x.h5") | {"block2c_dwconv.kernel": np.zeros((3, 3, 1, 1))}
    made = recognise.recognise(arrays, TINY, file="x")
    assert "block2c_dwconv.kernel" in made.arrays  # unknown, so that it cannot be ported


@pytest.mark.parametrize("kind", ["external link", "soft link", "external data", "virtual"])
def test_nothing_outside_the_file_is_read(kind, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(400))
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["a"] = np.zeros(100, np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        if kind == "external link":
            file["a"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/a")
        elif kind == "soft link":
            file["a"] = h5py.SoftLink("/b")
        elif kind == "external data":
            where = [(str(tmp_path / "secret"), 0, 400)]
            file.create_dataset("a", (100,), np.float32, external=where)
        else:
            layout = h5py.VirtualLayout((100,), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "a", (100,))
            file.create_virtual_dataset("a", layout)
    with pytest.raises(WeightsError, match="x.h5: cannot be read as a Keras file"):
        keras_file.read(tmp_path / "x.h5")


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", data=np.zeros(10**6, np.float32), compression="gzip")
    with pytest.raises(WeightsError, match="unpacks to more than weights do"):
        keras_file.read(tmp_path / "x.h5")


def test_without_h5py_the_error_says_what_to_install(tmp_path, monkeypatch):
    legacy(tmp_path / "x.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(WeightsError, match=r"h5py, which is not installed.*crossdim_jax\[keras\]"):
        keras_file.read(tmp_path / "x.h5")
