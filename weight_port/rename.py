"""Leaves and layouts that torch's layers have in every family, and ours. Pure numpy.

Every kernel is `(*window, in / groups, out)`; that of a conditional convolution has the experts as
its first axis. Only a classifier is a matrix, `(in, out)`.
"""

import re

import numpy as np

# BatchNorm's step counter is the one tensor that nothing of ours has a use for.
UNUSED = re.compile(r".*\bnum_batches_tracked")

# Leaf of a layer in torch -> collection and name of ours.
NORM_LEAVES = {
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}
KERNEL_LEAVES = {"weight": ("params", "kernel"), "bias": ("params", "bias")}


def to_flax_layout(array: np.ndarray) -> np.ndarray:
    """(out, in/groups, k, k) -> (k, k, in/groups, out), (out, in) -> (in, out); vectors stay."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else _transposed(array)


def to_torch_layout(array: np.ndarray) -> np.ndarray:
    """The inverse of `to_flax_layout`."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else _transposed(array)


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T if array.ndim == 2 else array
