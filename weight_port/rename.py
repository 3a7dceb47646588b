"""Leaves and layouts that torch's layers have in every family, and ours. Pure numpy.

Every kernel is `(*window, in / groups, out)`; that of a conditional convolution has the experts as
its first axis. Only a classifier is a matrix, `(in, out)`.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from crossdim_jax.weights.paths import ENCODER, HEAD

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


def inverse(names: Mapping[str, str]) -> dict[str, str]:
    """The names the other way round."""
    return {new: old for old, new in names.items()}


def _transposed(array: np.ndarray) -> np.ndarray:
    return array.T if array.ndim == 2 else array


@dataclasses.dataclass(frozen=True)
class Names:
    """timm's names of a family's tensors and the paths of ours, either way.

    Attributes:
      leaves: timm's name of a module -> leaf of each tensor it may have -> collection and name of
        ours; empty if the family has no such module.
      to_flax, to_torch: a module's name in timm -> in our paths, "." between modules; and back.
      head: names of the modules of the classification head.
    """

    leaves: Callable[[str], Mapping[str, tuple[str, str]]]
    to_flax: Callable[[str], str]
    to_torch: Callable[[str], str]
    head: re.Pattern

    def flax_path(self, torch_name: str) -> str | None:
        """The weight file's path for a timm tensor, or None if the name is not of this family."""
        module, _, leaf = torch_name.rpartition(".")
        leaves = self.leaves(module)
        if leaf not in leaves:
            return None
        collection, name = leaves[leaf]
        collection = HEAD if self.head.fullmatch(module) else collection
        return f"{collection}/{ENCODER}/{self.to_flax(module).replace('.', '/')}/{name}"

    def torch_name(self, path: str) -> str | None:
        """timm's name for a tensor of a weight file, the inverse of `flax_path`; None without one.

        A depth filter has none, nor has what is not the encoder's.
        """
        parts = path.split("/")
        if len(parts) < 4 or parts[1] != ENCODER:
            return None
        module = self.to_torch(".".join(parts[2:-1]))
        for leaf, (usual, name) in self.leaves(module).items():
            if (parts[0], parts[-1]) == (HEAD if self.head.fullmatch(module) else usual, name):
                return f"{module}.{leaf}"
        return None

    def of_head(self, torch_name: str) -> bool:
        """True if a timm tensor is of the classification head."""
        return self.head.fullmatch(torch_name.rpartition(".")[0]) is not None
