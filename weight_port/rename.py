"""timm's EfficientNet names and layouts <-> Flax paths and layouts. Pure numpy.

Names map one to one: `blocks.1.0.conv_dw.weight` is `params/encoder/blocks_1_0/conv_dw/kernel`. The
classification head (`conv_head`, the top-level `bn2`, `classifier`) is no part of an encoder and
has a collection of its own: `classifier.bias` is `head/encoder/classifier/bias`.

Every kernel is `(*window, in / groups, out)`; that of a conditional convolution has the experts as
its first axis, and the layer that weighs them, `routing_fn`, is a 1x1 convolution. Only the
classifier is a matrix, `(in, out)`.
"""

import math
import re
from collections.abc import Sequence

import numpy as np

from crossdim_jax.weights.paths import HEAD, is_head

MODULE = "encoder"  # where a network keeps its encoder

# BatchNorm's step counter is the one tensor that nothing of ours has a use for.
UNUSED = re.compile(r".*\bnum_batches_tracked")

# The head's norm is the *top-level* bn2; every block has a bn2 of its own.
_HEAD = re.compile(r"(conv_head|bn2|classifier)$")
_NORM = re.compile(r"bn(\d+|_\w+)$")
_NORM_LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_KERNEL = re.compile(r"(conv(_\w+)?|classifier|routing_fn)$")
_KERNEL_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
_TO_FLAX = re.compile(r"^blocks\.(\d+)\.(\d+)(?=\.|$)")
_TO_TORCH = re.compile(r"^blocks_(\d+)_(\d+)(?=/|$)")


def flax_path(torch_name: str) -> str | None:
    """The weight file's path for a timm tensor, or None if the name is not of this family.

    `bn1.running_mean` -> `batch_stats/encoder/bn1/mean`.
    """
    module, _, leaf = torch_name.rpartition(".")
    layer = module.rpartition(".")[2]
    leaves = _leaves(layer)
    if leaf not in leaves:
        return None
    collection, name = leaves[leaf]
    if _HEAD.match(module):
        collection = HEAD
    inner = _TO_FLAX.sub(r"blocks_\1_\2", module).replace(".", "/")
    return f"{collection}/{MODULE}/{inner}/{name}"


def of_head(torch_name: str) -> bool:
    """Whether a timm tensor is of the classification head."""
    return _HEAD.match(torch_name.rpartition(".")[0]) is not None


def torch_name(path: str) -> str | None:
    """timm's name for a tensor of a weight file, the inverse of `flax_path`; None if it has none.

    A depth filter (`conv_dw/depth_kernel`) has none, nor has what is not the encoder's.
    """
    parts = path.split("/")
    if len(parts) < 4 or parts[1] != MODULE:
        return None
    (collection, _), inner, name = parts[:2], parts[2:-1], parts[-1]
    module = _TO_TORCH.sub(r"blocks.\1.\2", "/".join(inner)).replace("/", ".")
    for leaf, (usual, flax_name) in _leaves(inner[-1]).items():
        if (collection, name) == (HEAD if _HEAD.match(module) else usual, flax_name):
            return f"{module}.{leaf}"
    return None


def _leaves(layer: str) -> dict[str, tuple[str, str]]:
    """The tensors a layer of that name may have."""
    return _NORM_LEAVES if _NORM.match(layer) else _KERNEL_LEAVES if _KERNEL.match(layer) else {}


def to_flax_layout(
    array: np.ndarray, path: str = "", shape: Sequence[int] | None = None
) -> np.ndarray:
    """A torch tensor, laid out as the weight file has it in 2D.

    Args:
      array: (out, in/groups, k, k) becomes (k, k, in/groups, out), for full, 1x1 and depthwise
        convolutions alike; vectors are left as they are.
      path: from `flax_path`; matrices are told apart by it.
      shape: that the path has in the encoder, 2D or 3D; needed for the experts of a conditional
        convolution alone, which torch keeps flat, (experts, out * in/groups * k * k).

    Returns:
      the 2D layout. Experts that do not have as many numbers as the shape stay flat.
    """
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim != 2:
        return array
    if path.endswith("/routing_fn/kernel"):
        return array.T[None, None]
    if is_head(path):
        return array.T
    if shape is None or math.prod(shape[-4:]) != array.shape[1]:
        return array
    k1, k2, c_in, c_out = shape[-4:]
    return array.reshape(-1, c_out, c_in, k1, k2).transpose(0, 3, 4, 2, 1)


def to_torch_layout(array: np.ndarray, path: str = "") -> np.ndarray:
    """A tensor of a 2D weight file, laid out as torch has it: the inverse of `to_flax_layout`."""
    if path.endswith("/routing_fn/kernel"):
        return array[0, 0].T
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if array.ndim == 5:
        return array.transpose(0, 4, 3, 1, 2).reshape(array.shape[0], -1)
    return array.T if array.ndim == 2 else array
