"""MobileNetV3 as timm has it: EfficientNet's names, its own conventions and classification head."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.models import efficientnet_table, mobilenetv3
from weight_port.families import efficientnet, heads
from weight_port.rename import Scheme

# --------------------------------------------------------------------------- names, conventions

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {
    r"(tf_)?mobilenetv3_(large|small)_(minimal_100|0\d\d)": "only the whole width is, with gates",
    r"mobilenetv3_(large_150d|rw)": "it departs from the paper's network",
}


def models(architecture: str) -> tuple[str, ...]:
    """timm's names for an architecture, without tags: with `tf_` first."""
    return (f"tf_{architecture}", architecture)


convention = efficientnet.convention
architecture_of = efficientnet.architecture_of


def label(architecture: str) -> str:
    """timm's names for an architecture in one word: "[tf_]mobilenetv3_large_100"."""
    return f"[tf_]{architecture}"


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    return ["mobilenetv3: as EfficientNet; torchvision's weights: symmetric padding, eps 1e-3."]


def _network(architecture: str) -> efficientnet_table.Network:
    return mobilenetv3.network(architecture.removeprefix("mobilenetv3_"))


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    network = _network(architecture)
    return efficientnet_table.count(network), network.resolution


# --------------------------------------------------------------------------- renaming, layouts

flax_path, torch_name = efficientnet.flax_path, efficientnet.torch_name
of_head = efficientnet.of_head
to_flax_layout, to_torch_layout = efficientnet.to_flax_layout, efficientnet.to_torch_layout


# --------------------------------------------------------------------------- other libraries

# Leaf module of torchvision's convolution with norm -> of timm's, by the block's part.
_PARTS = {
    "separable": (("conv_dw", "bn1"), ("conv_pw", "bn2")),
    "inverted": (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3")),
    "plain": (("conv", "bn1"),),
}
_GATE = {"fc1": "se.conv_reduce", "fc2": "se.conv_expand"}


def _of_torchvision(architecture: str, name: str) -> str | None:
    """timm's name for a tensor of torchvision's: `features.4.block.2.fc1.bias`."""
    if match := re.fullmatch(r"classifier\.([03])\.(\w+)", name):
        return f"{'conv_head' if match[1] == '0' else 'classifier'}.{match[2]}"
    if match := re.fullmatch(r"features\.0\.([01])\.(\w+)", name):
        return f"{'conv_stem' if match[1] == '0' else 'bn1'}.{match[2]}"
    stages = _network(architecture).stages
    places = [(s, i) for s, blocks in enumerate(stages) for i in range(len(blocks))]
    match = re.fullmatch(r"features\.(\d+)\.(?:block\.(\d)\.)?(\w+)\.(\w+)", name)
    if match is None or not 1 <= int(match[1]) <= len(places):
        return None
    s, i = places[int(match[1]) - 1]
    block, part = stages[s][i], int(match[2] or 0)
    if (match[2] is None) != (block.kind == "plain"):
        return None
    parts = list(_PARTS[block.kind])
    if block.reduced:
        parts.insert(-1, None)
    if part >= len(parts):
        return None
    if parts[part] is None:
        layer = _GATE.get(match[3])
    else:
        layer = dict(zip("01", parts[part], strict=True)).get(match[3])
    return f"blocks.{s}.{i}.{layer}.{match[4]}" if layer else None


def _as_kernel(name: str, array: np.ndarray) -> np.ndarray:
    """timm's first layer of the head is a 1x1 convolution, torchvision's a linear one."""
    return array[:, :, None, None] if name == "conv_head.weight" else array


SCHEMES = {"torchvision": Scheme(_of_torchvision, ("symmetric", 1e-3), _as_kernel)}


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = efficientnet.CLASSIFIER


def feature_modules(network: Any) -> list[Any]:
    """timm's modules whose outputs are the features: the stem's norm, then its own below /2."""
    below = [info["module"] for info in network.feature_info if info["reduction"] > 2]
    return [network.bn1, *map(network.get_submodule, below)]


def logits(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Logits of an encoder's last feature: mean over all pixels, conv_head, activation, classifier.

    Args, returns, raises: as `families.efficientnet.logits`.
    """
    names = (
        f"{layer}/{leaf}" for layer in ("conv_head", "classifier") for leaf in ("kernel", "bias")
    )
    head = heads.tensors(arrays, *names)
    x = jnp.mean(jnp.asarray(feature).reshape(feature.shape[0], -1, feature.shape[-1]), 1)
    x = x @ head["conv_head/kernel"][0, 0] + head["conv_head/bias"][None]
    x = ops.ACTIVATIONS[_network(architecture).activation](x)
    return x @ head["classifier/kernel"] + head["classifier/bias"][None]
