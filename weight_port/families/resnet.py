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
from weight_port.formats.scheme import (
    BIASED,
    KERNEL,
    NORM,
    PYTORCH,
    Scheme,
    by_class_in_keras,
    in_keras,
    timm,
)
from weight_port.rename import Names

# --------------------------------------------------------------------------- names, conventions

KERAS = ("symmetric", 1.001e-5)

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

_to_flax, _to_torch = common.block_names(_LAYERS, _IN_BLOCK, "layer{}.{}", first=0)
_NAMES = Names(common.leaves(_to_flax), _to_flax, _to_torch, head=re.compile("fc"))
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head
to_flax_layout, to_torch_layout = common.to_flax_layout, common.to_torch_layout


# --------------------------------------------------------------------------- other libraries

_KERAS = {"conv1": "conv1_conv", "bn1": "conv1_bn", "fc": "predictions"}
_BLOCK_IN_KERAS = {"downsample.0": "0_conv", "downsample.1": "0_bn"}
_BLOCK_IN_KERAS |= {f"conv{n}": f"{n}_conv" for n in (1, 2, 3)}
_BLOCK_IN_KERAS |= {f"bn{n}": f"{n}_bn" for n in (1, 2, 3)}
# Modules in order: the files of RadImageNet and others have their numbers in place of the names.
CHILDREN = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "pool", "fc")


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors, the stem first; torchvision has the same."""
    kernel = BIASED if resnet.ROWS[architecture].keras else KERNEL
    found = {"conv1": kernel, "bn1": NORM}
    for s, blocks in enumerate(resnet.network(architecture).stages, 1):
        for place, block in ((f"layer{s}.{i}", block) for i, block in enumerate(blocks)):
            for n in (1, 2, 3) if block.kind == "bottleneck" else (1, 2):
                found |= {f"{place}.conv{n}": kernel, f"{place}.bn{n}": NORM}
            if block.shortcut:
                found |= {f"{place}.downsample.0": kernel, f"{place}.downsample.1": NORM}
    return found | {"fc": BIASED}


def _in_keras(layer: str) -> str:
    """Keras' name for a layer of timm's."""
    if layer in _KERAS:
        return _KERAS[layer]
    s, i, inner = re.fullmatch(r"layer(\d)\.(\d+)\.(.+)", layer).groups()
    return f"conv{int(s) + 1}_block{int(i) + 1}_{_BLOCK_IN_KERAS[inner]}"


def keras_names(architecture: str) -> dict[str, str]:
    """Keras' name of each tensor, `conv2_block1_0_bn.gamma` -> timm's; none of others' forms."""
    if not resnet.ROWS[architecture].keras:
        return {}
    return {
        f"{_in_keras(layer)}.{in_keras(leaf, leaves)}": f"{layer}.{leaf}"
        for layer, leaves in _layers(architecture).items()
        for leaf in leaves
    }


def keras_numbers(architecture: str) -> dict[str, str]:
    """Names of Keras 3's `.weights.h5`, `conv2d_3.kernel`, -> timm's; none of others' forms.

    Keras orders layers by how far they are from the output, and among equals the first input of the
    sum comes first: a shortcut's stand before the last ones of its block.
    """
    if not resnet.ROWS[architecture].keras:
        return {}
    leaves, ordered = _layers(architecture), []
    for layer in leaves:
        ordered.insert(len(ordered) - 2 * (".downsample." in layer), layer)
    kinds = {NORM: "batch_normalization", BIASED: "conv2d"}
    return by_class_in_keras(
        ("dense" if layer == CLASSIFIER else kinds[leaves[layer]], layer, leaves[layer])
        for layer in ordered
    )


def from_keras(name: str, array: np.ndarray) -> np.ndarray:
    """Keras' layout -> torch's: (k, k, in, out) -> (out, in, k, k), (in, out) -> (out, in)."""
    return rename.to_torch_layout(array)


SCHEMES = (
    timm(_layers, convention, CHILDREN),
    Scheme("keras", "Keras' names", keras_names, convention, to_torch=from_keras, own=r"conv\d_"),
    Scheme(
        "keras-numbers",
        "Keras' numbers of layers",
        keras_numbers,
        convention,
        to_torch=from_keras,
        own=r"conv2d|batch_normalization",
    ),
)


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "fc"  # timm's name of the last layer
feature_modules, logits = common.feature_modules, common.logits
