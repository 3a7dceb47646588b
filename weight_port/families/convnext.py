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
from weight_port.formats.scheme import BIASED, Scheme, tensors, timm
from weight_port.rename import KERNEL_LEAVES, NORM_LEAVES, Names

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

# timm's layers -> torchvision's and the authors'.
_IN_TORCHVISION = {"stem.0": "features.0.0", "stem.1": "features.0.1"}
_IN_TORCHVISION |= {"head.norm": "classifier.0", "head.fc": "classifier.2"}
_IN_META = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1"}
_IN_META |= {"head.norm": "norm", "head.fc": "head"}
# The same within a block.
_BLOCK_IN_TORCHVISION = {"conv_dw": "0", "norm": "2", "mlp.fc1": "3", "mlp.fc2": "5"}
_BLOCK_IN_META = {"conv_dw": "dwconv", "norm": "norm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
_PLACE = re.compile(r"stages\.(\d)\.(downsample|blocks)\.(\d+)\.?(.*)")


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors; a block has its layer scale."""
    found = dict.fromkeys(("stem.0", "stem.1"), BIASED)
    for s, blocks in enumerate(convnext.ROWS[architecture.removeprefix("convnext_")].blocks):
        if s:
            found |= dict.fromkeys((f"stages.{s}.downsample.{n}" for n in (0, 1)), BIASED)
        for block in (f"stages.{s}.blocks.{i}" for i in range(blocks)):
            found[block] = ("gamma",)
            found |= dict.fromkeys((f"{block}.{layer}" for layer in _BLOCK_IN_META), BIASED)
    return found | dict.fromkeys(("head.norm", "head.fc"), BIASED)


def _in_torchvision(layer: str) -> str:
    """torchvision's name for a layer of timm's: stages and what leads to them in one sequence."""
    if layer in _IN_TORCHVISION:
        return _IN_TORCHVISION[layer]
    stage, kind, number, inner = _PLACE.fullmatch(layer).groups()
    place = f"features.{2 * int(stage) + (kind == 'blocks')}.{number}"
    return f"{place}.block.{_BLOCK_IN_TORCHVISION[inner]}" if inner else place


def torchvision_names(architecture: str) -> dict[str, str]:
    """torchvision's name of each tensor, `features.1.0.block.0.bias` -> timm's."""
    found = tensors(_layers(architecture), _in_torchvision)
    return {re.sub(r"\bgamma$", "layer_scale", name): timms for name, timms in found.items()}


def _in_meta(layer: str) -> str:
    """The authors' name for a layer of timm's: `stages.0.0.dwconv`."""
    if layer in _IN_META:
        return _IN_META[layer]
    stage, kind, number, inner = _PLACE.fullmatch(layer).groups()
    place = f"{'stages' if kind == 'blocks' else 'downsample_layers'}.{stage}.{number}"
    return f"{place}.{_BLOCK_IN_META[inner]}" if inner else place


def _flat_scales(name: str, array: np.ndarray) -> np.ndarray:
    """torchvision's layer scales are (c, 1, 1), timm's (c,)."""
    return array.reshape(-1) if name.endswith(".gamma") else array


SCHEMES = (
    timm(_layers, convention),
    Scheme("torchvision", "torchvision's names", torchvision_names, convention, _flat_scales),
    Scheme("meta", "the authors' names", lambda a: tensors(_layers(a), _in_meta), convention),
)


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
