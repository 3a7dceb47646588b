"""timm's EfficientNet names and layouts -> Flax paths and layouts. Pure numpy.

Names map one to one: `blocks.1.0.conv_dw.weight` is `params/encoder/blocks_1_0/conv_dw/kernel`.
"""

import re

import numpy as np

MODULE = "encoder"  # where a network keeps its encoder

# The classification head, and BatchNorm's step counter, have no place in an encoder. The head's
# norm is the *top-level* bn2; every block has a bn2 of its own.
UNUSED = re.compile(r"(conv_head|bn2|classifier)\..*|.*\bnum_batches_tracked")

_NORM = re.compile(r"bn\d+$")
_NORM_LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
_CONV = re.compile(r"conv_\w+$")
_CONV_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias")}
_BLOCK = re.compile(r"^blocks\.(\d+)\.(\d+)\.")


def flax_path(torch_name: str) -> str | None:
    """The weight file's path for a timm tensor, or None if the name is not of this family.

    `bn1.running_mean` -> `batch_stats/encoder/bn1/mean`.
    """
    module, _, leaf = torch_name.rpartition(".")
    layer = module.rpartition(".")[2]
    leaves = _NORM_LEAVES if _NORM.match(layer) else _CONV_LEAVES if _CONV.match(layer) else {}
    if leaf not in leaves:
        return None
    collection, name = leaves[leaf]
    inner = _BLOCK.sub(r"blocks_\1_\2.", module).replace(".", "/")
    return f"{collection}/{MODULE}/{inner}/{name}"


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """(out, in/groups, k, k) -> (k, k, in/groups, out); vectors are left as they are.

    The same for full, 1x1 and depthwise convolutions.
    """
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
