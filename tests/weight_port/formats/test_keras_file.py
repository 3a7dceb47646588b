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
from weight_port.families import resnet
from weight_port.formats import keras_file
from weight_port.names import Name, parse_name

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


def counted_layers(repeats):
    """Layers of keras.applications' ResNet in the order in which Keras counts them.

    The layers by how far they are from the output at most; those that are equally far as a search
    comes by that starts at the output and goes through each layer's inputs in order.
    """
    inputs = {}

    def chain(before, *layers):
        for layer in layers:
            inputs[layer] = [before] if before else []
            before = layer
        return before

    last = chain(None, "conv1_conv", "conv1_bn", "conv1_relu", "pool1_pool")
    for stage, blocks in enumerate(repeats, 2):
        for name in (f"conv{stage}_block{i}" for i in range(1, blocks + 1)):
            first = name.endswith("block1")
            shortcut = chain(last, f"{name}_0_conv", f"{name}_0_bn") if first else last
            parts = [f"{name}_{n}_{part}" for n in (1, 2, 3) for part in ("conv", "bn", "relu")]
            x = chain(last, *parts[:-1])
            inputs[f"{name}_add"] = [shortcut, x]
            last = chain(f"{name}_add", f"{name}_out")
    far, seen, waiting = {"predictions": 0}, [], ["predictions"]
    chain(last, "predictions")
    for layer in reversed(inputs):
        for each in inputs[layer]:
            far[each] = max(far.get(each, 0), far[layer] + 1)
    while waiting:
        layer = waiting.pop()
        if layer not in seen:
            seen.append(layer)
            waiting += reversed(inputs[layer])
    return sorted(inputs, key=lambda layer: (-far[layer], seen.index(layer)))


@pytest.mark.parametrize(
    ("depth", "repeats"), [(50, (3, 4, 6, 3)), (101, (3, 4, 23, 3)), (152, (3, 8, 36, 3))]
)
def test_layers_of_resnets_have_the_numbers_that_keras_gives_them(depth, repeats):
    of_keras, counts, expected = resnet.keras_names(f"resnet{depth}_keras"), {}, {}
    kinds = {"conv": "conv2d", "bn": "batch_normalization", "predictions": "dense"}
    for layer in counted_layers(repeats):
        if kind := kinds.get(layer.rpartition("_")[2]):
            number = counts[kind] = counts.get(kind, -1) + 1
            for name in (name for name in of_keras if name.startswith(f"{layer}.")):
                leaf = name.partition(".")[2]
                expected[f"{kind}_{number}.{leaf}".replace("_0.", ".")] = of_keras[name]
    assert counts["conv2d"] + 1 == depth - 1 + 4  # without the classifier, with shortcuts
    assert resnet.keras_numbers(f"resnet{depth}_keras") == expected


def test_a_numbered_file_of_a_resnet_becomes_its_tensors(tmp_path, rng):
    name, expected = parse_name("resnet50_keras"), {}
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        for theirs, target in resnet.keras_numbers("resnet50_keras").items():
            layer, leaf = theirs.split(".")
            ndim = {"kernel": 2 if layer == "dense" else 4}.get(leaf, 1)
            array = rng.normal(size=(1, 1, 2, 3)[-ndim:]).astype(np.float32)
            file[f"layers/{layer}/vars/{NUMBERS[leaf]}"] = array
            expected[target] = array.transpose((3, 2, 0, 1) if ndim == 4 else None)
    arrays = keras_file.read(tmp_path / "x.weights.h5")
    made = recognise.recognise(arrays, name, file="x.weights.h5")
    assert made.place.scheme.name == "keras-numbers" and not made.others
    assert made.place.scheme.convention("resnet50_keras") == (name.padding, name.eps)
    assert made.arrays.keys() == expected.keys()
    for target, array in expected.items():
        np.testing.assert_array_equal(made.arrays[target], array)


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
