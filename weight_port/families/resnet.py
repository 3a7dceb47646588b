"""ResNet as timm and torchvision have it, and as Keras: names, conventions, renaming, head.

`layer2.0.conv1.weight` is `params/encoder/stages_1_0/conv1/kernel`, `layer2.0.downsample.1.bias` is
`params/encoder/stages_1_0/shortcut_norm/bias`. The head is the classifier alone, `fc`.

Keras' form (`resnet50_keras`, which RadImageNet's ResNet50 is) has biases, the stride on a
bottleneck's first convolution, and an eps of its own. timm has no such network; its tensors go by
the names that timm's ResNets have.
"""

import re
from collections.abc import Mapping

import numpy as np

from crossdim_jax.models import residual, resnet
from weight_port import rename
from weight_port.families import common
from weight_port.rename import Names, Scheme

# --------------------------------------------------------------------------- names, conventions

PYTORCH, KERAS = ("symmetric", 1e-5), ("symmetric", 1.001e-5)

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {
    r"(se|eca)resne\w+|senet154": "its blocks have attention after their last convolution",
    r"resnex?t\d+[cdst](_\w+)?": "its stem is three convolutions, or its shortcuts pool",
    r"resnet(aa|blur)\d+d?": "its strides are blurs",
    r"resnetrs\d+": "its stem is three convolutions and its blocks have attention",
    r"resnet50_gn": "its group norms have 32 groups, whatever the channels",
    r"test_resnet": "it is a fixture of timm's own tests",
}


models, architecture_of, label = common.models, common.architecture_of, common.label


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights that go by a model's name."""
    return KERAS if model.endswith("_keras") else PYTORCH


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    lines = ["resnet: symmetric padding, eps 1e-5, the stride on the 3x3 convolution."]
    if any(name.endswith("_keras") for name in paddings):
        lines.append(
            "resnet..._keras, of keras.applications and RadImageNet: eps 1.001e-5, biases, the "
            "stride on the first 1x1."
        )
    return lines


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    net = resnet.network(architecture)
    return residual.parameters(net), net.resolution


# --------------------------------------------------------------------------- renaming, layouts

_LAYERS = {"conv1": "stem", "bn1": "stem_norm", "fc": "fc"}
_IN_BLOCK = {"downsample.0": "shortcut", "downsample.1": "shortcut_norm"}
_IN_BLOCK |= {f"conv{n}": f"conv{n}" for n in (1, 2, 3)} | {f"bn{n}": f"norm{n}" for n in (1, 2, 3)}


def _to_flax(module: str) -> str:
    """Our name of a module; "" if it is not of this family."""
    match = re.fullmatch(r"layer([1-4])\.(\d+)\.(.+)", module)
    if match is None:
        return _LAYERS.get(module, "")
    layer = _IN_BLOCK.get(match[3])
    return f"stages_{int(match[1]) - 1}_{match[2]}.{layer}" if layer else ""


def _to_torch(module: str) -> str:
    """The inverse of `_to_flax`."""
    match = re.fullmatch(r"stages_(\d)_(\d+)\.(.+)", module)
    if match is None:
        return rename.inverse(_LAYERS).get(module, "")
    layer = rename.inverse(_IN_BLOCK).get(match[3], "")
    return f"layer{int(match[1]) + 1}.{match[2]}.{layer}"


_NAMES = Names(common.leaves(_to_flax), _to_flax, _to_torch, head=re.compile("fc"))
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head
to_flax_layout, to_torch_layout = common.to_flax_layout, common.to_torch_layout


# --------------------------------------------------------------------------- other libraries

_KERAS_LEAVES = {
    **{"kernel": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"},
    **{"moving_mean": "running_mean", "moving_variance": "running_var"},
}
_KERAS_FORM = re.compile(r"(?:.*/)?(\w+)/(\w+?)(?::0)?")  # layer/tensor, within any groups


def _of_keras(architecture: str, name: str) -> str | None:
    """timm's name for a tensor of Keras': `conv2_block1_0_bn/gamma`."""
    match = _KERAS_FORM.fullmatch(name)
    if match is None or match[2] not in _KERAS_LEAVES:
        return None
    layer, leaf = match[1], _KERAS_LEAVES[match[2]]
    block = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", layer)
    if block is None:
        layer = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}.get(layer)
        return f"{layer}.{leaf}" if layer else None
    stage, index, number, kind = int(block[1]) - 1, int(block[2]) - 1, block[3], block[4]
    if number == "0":
        return f"layer{stage}.{index}.downsample.{0 if kind == 'conv' else 1}.{leaf}"
    return f"layer{stage}.{index}.{kind}{number}.{leaf}"


def _of_keras_layout(name: str, array: np.ndarray) -> np.ndarray:
    """(k, k, in, out) -> (out, in, k, k), (in, out) -> (out, in); vectors stay."""
    return rename.to_torch_layout(array)


_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def _of_children(architecture: str, name: str) -> str | None:
    """timm's name for a tensor of RadImageNet's: torchvision's modules by number, from the stem."""
    match = re.fullmatch(r"(?:backbone\.)?([014-7])\.(.+)", name)
    return f"{_CHILDREN[match[1]]}.{match[2]}" if match else None


SCHEMES = {
    "keras": Scheme(_of_keras, KERAS, _of_keras_layout),
    "radimagenet": Scheme(_of_children),
}


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "fc"  # timm's name of the last layer
feature_modules, logits = common.feature_modules, common.logits
