"""ConvNeXt as timm has it: names, conventions, renaming, classification head.

`stages.1.blocks.0.mlp.fc1.weight` is `params/encoder/stages_1_blocks_0/mlp_fc1/kernel`, a 1x1
convolution; `gamma` is the layer scale. The head (`head.norm`, `head.fc`) has a collection of its
own. LayerNorm has no running statistics, and no other norm takes its place.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.models import convnext
from crossdim_jax.weights.paths import HEAD
from weight_port import rename
from weight_port.families import common, heads
from weight_port.rename import KERNEL_LEAVES, NORM_LEAVES, Names, Scheme

# --------------------------------------------------------------------------- names, conventions

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {
    r"convnext_(zepto|atto|femto|pico|nano)\w*": "its stem or channels are of timm's own making",
    r"convnext_(tiny_hnf|large_mlp|xlarge|xxlarge)": "only tiny, small, base and large are",
    r"test_convnext\d?": "it is a fixture of timm's own tests",
    r"convnextv2_\w+": "its blocks have global response normalisation",
}


models, architecture_of, label = common.models, common.architecture_of, common.label


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    return "symmetric", 1e-6


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    return ["convnext: eps 1e-6; LayerNorm stays whatever the norm of the layers around it."]


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    variant = architecture.removeprefix("convnext_")
    return convnext.parameters(variant), convnext.RESOLUTION


# --------------------------------------------------------------------------- renaming, layouts

_NORM = re.compile(r"stem\.1|head\.norm|stages\.\d+\.(downsample\.0|blocks\.\d+\.norm)")
_KERNEL = re.compile(
    r"stem\.0|head\.fc|stages\.\d+\.(downsample\.1|blocks\.\d+\.(conv_dw|mlp\.fc[12]))"
)
_SCALE = re.compile(r"stages\.\d+\.blocks\.\d+")


def _leaves(module: str) -> Mapping[str, tuple[str, str]]:
    """The tensors of a module of timm's."""
    if _SCALE.fullmatch(module):
        return {"gamma": ("params", "gamma")}
    if _NORM.fullmatch(module):
        return NORM_LEAVES
    return KERNEL_LEAVES if _KERNEL.fullmatch(module) else {}


_NAMES = Names(
    leaves=_leaves,
    to_flax=lambda module: re.sub(r"\.(?=blocks|downsample|fc[12]$|\d)", "_", module),
    to_torch=lambda module: re.sub(r"_(?=blocks|downsample|fc[12]$|\d)", ".", module),
    head=re.compile(r"head\..*"),
)
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head


def to_flax_layout(
    array: np.ndarray, path: str = "", shape: Sequence[int] | None = None
) -> np.ndarray:
    """A torch tensor, laid out as the weight file has it in 2D: linear layers are 1x1 kernels."""
    if array.ndim == 2 and not path.startswith(f"{HEAD}/"):
        return array.T[None, None]
    return rename.to_flax_layout(array)


def to_torch_layout(array: np.ndarray, path: str = "") -> np.ndarray:
    """A tensor of a 2D weight file, laid out as torch has it: the inverse of `to_flax_layout`."""
    return array[0, 0].T if "/mlp_fc" in path and array.ndim == 4 else rename.to_torch_layout(array)


# --------------------------------------------------------------------------- other libraries

# torchvision's blocks and Meta's: layer -> timm's.
_TORCHVISION = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
_META = {"dwconv": "conv_dw", "norm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}


def _of_torchvision(architecture: str, name: str) -> str | None:
    """timm's name for a tensor of torchvision's: `features.1.0.block.0.bias`."""
    if match := re.fullmatch(r"classifier\.([02])\.(\w+)", name):
        return f"head.{'norm' if match[1] == '0' else 'fc'}.{match[2]}"
    if match := re.fullmatch(r"features\.(\d)\.([01])\.(weight|bias)", name):
        place = int(match[1])
        inner = f"stages.{place // 2}.downsample" if place else "stem"
        return f"{inner}.{match[2]}.{match[3]}" if place % 2 == 0 else None
    match = re.fullmatch(
        r"features\.([1357])\.(\d+)\.(?:(layer_scale)|block\.([0235])\.(\w+))", name
    )
    if match is None:
        return None
    block = f"stages.{int(match[1]) // 2}.blocks.{match[2]}"
    return f"{block}.gamma" if match[3] else f"{block}.{_TORCHVISION[match[4]]}.{match[5]}"


def _of_meta(architecture: str, name: str) -> str | None:
    """timm's name for a tensor of the authors' code: `stages.0.0.dwconv.bias`."""
    if match := re.fullmatch(r"(norm|head)\.(weight|bias)", name):
        return f"head.{'norm' if match[1] == 'norm' else 'fc'}.{match[2]}"
    if match := re.fullmatch(r"downsample_layers\.(\d)\.([01])\.(\w+)", name):
        inner = "stem" if match[1] == "0" else f"stages.{match[1]}.downsample"
        return f"{inner}.{match[2]}.{match[3]}"
    match = re.fullmatch(r"stages\.(\d)\.(\d+)\.(?:(gamma)|(\w+)\.(\w+))", name)
    if match is None or (match[4] and match[4] not in _META):
        return None
    block = f"stages.{match[1]}.blocks.{match[2]}"
    return f"{block}.gamma" if match[3] else f"{block}.{_META[match[4]]}.{match[5]}"


def _flat_scales(name: str, array: np.ndarray) -> np.ndarray:
    """torchvision's layer scales are (c, 1, 1), timm's (c,)."""
    return array.reshape(-1) if name.endswith(".gamma") else array


SCHEMES = {
    "torchvision": Scheme(_of_torchvision, layout=_flat_scales),
    "meta": Scheme(_of_meta),
}


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "head.fc"  # timm's name of the last layer


def feature_modules(network: Any) -> list[Any]:
    """timm's modules whose outputs are the features: every stage."""
    return list(network.stages)


def logits(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Logits of an encoder's last feature: mean over all pixels, norm, classifier.

    Args, returns, raises: as `families.efficientnet.logits`.
    """
    head = heads.tensors(arrays, "norm/scale", "norm/bias", "fc/kernel", "fc/bias", under="head/")
    x = jnp.mean(jnp.asarray(feature).reshape(feature.shape[0], -1, feature.shape[-1]), 1)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    x = x * head["norm/scale"][None] + head["norm/bias"][None]
    return x @ head["fc/kernel"] + head["fc/bias"][None]
