"""MobileNetV3 as timm has it: EfficientNet's names, its own conventions and classification head."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.models import efficientnet_table, mobilenetv3
from weight_port.families import efficientnet, efficientnet_schemes, heads
from weight_port.formats.scheme import BIASED, Scheme, tensors, timm

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

_HEAD = {"conv_head": "classifier.0", "classifier": "classifier.3"}  # timm's -> torchvision's
_TORCHVISION = efficientnet_schemes.TORCHVISION | {"block": "features.{flat1}.block."}


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors."""
    body = efficientnet_schemes.body(_network(architecture).stages)
    return efficientnet_schemes.layers(body) | dict.fromkeys(_HEAD, BIASED)


def torchvision_names(architecture: str) -> dict[str, str]:
    """torchvision's name of each tensor, `features.4.block.2.fc1.bias` -> timm's."""
    stages = _network(architecture).stages
    found = efficientnet_schemes.by_table(_TORCHVISION, efficientnet_schemes.body(stages))
    # The last block is a convolution alone, which stands in no module `block`.
    plain = f"features.{sum(map(len, stages))}."
    found = {name.replace(f"{plain}block.0.", plain): timms for name, timms in found.items()}
    return found | tensors(dict.fromkeys(_HEAD, BIASED), _HEAD.__getitem__)


def _as_kernel(name: str, array: np.ndarray) -> np.ndarray:
    """timm's first layer of the head is a 1x1 convolution, torchvision's a linear one."""
    return array[:, :, None, None] if name == "conv_head.weight" else array


SCHEMES = (
    timm(_layers, convention),
    Scheme(
        "torchvision",
        "torchvision's names",
        torchvision_names,
        lambda model: efficientnet_schemes.TORCHVISION_OTHERS,
        to_torch=_as_kernel,
    ),
)


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
