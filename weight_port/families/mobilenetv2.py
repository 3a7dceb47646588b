"""MobileNetV2 as timm has it: EfficientNet's names and classification head."""

from collections.abc import Mapping

import jax
import numpy as np

from crossdim_jax.models import efficientnet_table, mobilenetv2
from weight_port.families import common, efficientnet, efficientnet_schemes, mobilenetv3
from weight_port.formats.scheme import PYTORCH, Scheme, timm

# --------------------------------------------------------------------------- names, conventions

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {r"mobilenetv2_(0\d\d|140|1[12]0d)": "only the whole width is"}

models, architecture_of, label = common.models, common.architecture_of, common.label


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm and torchvision have under a model's name."""
    return PYTORCH


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    return ["mobilenetv2: symmetric padding, eps 1e-5."]


def _network(architecture: str) -> efficientnet_table.Network:
    return mobilenetv2.network(architecture.removeprefix("mobilenetv2_"))


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    network = _network(architecture)
    return efficientnet_table.count(network), network.resolution


# --------------------------------------------------------------------------- renaming, layouts

flax_path, torch_name = efficientnet.flax_path, efficientnet.torch_name
of_head = efficientnet.of_head
to_flax_layout, to_torch_layout = common.to_flax_layout, common.to_torch_layout


# --------------------------------------------------------------------------- other libraries

_TORCHVISION = efficientnet_schemes.TORCHVISION | {
    **{"block": "features.{flat1}.conv.", "project": "{n}", "project_norm": "{n1}"},
}


def _parts(architecture: str) -> list[efficientnet_schemes.Part]:
    """Every layer in order; torchvision counts blocks, not stages."""
    stages = _network(architecture).stages
    last = sum(map(len, stages)) + 1
    return [*efficientnet_schemes.body(stages), *efficientnet_schemes.head(last)]


SCHEMES = (
    timm(
        lambda architecture: efficientnet_schemes.layers(_parts(architecture)),
        convention,
        children=efficientnet.CHILDREN,
    ),
    Scheme(
        "torchvision",
        "torchvision's names",
        lambda architecture: efficientnet_schemes.by_table(_TORCHVISION, _parts(architecture)),
        convention,
        children=("features", "classifier"),
    ),
)


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = efficientnet.CLASSIFIER
feature_modules = mobilenetv3.feature_modules


def logits(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Logits of an encoder's last feature; args, returns, raises: as `efficientnet.logits`."""
    return efficientnet.logits_of(_network(architecture), arrays, feature, eps=eps)
