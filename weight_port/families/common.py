"""Ways of families whose architectures are named as timm's models are, and whose layers are plain.

Their files take from here what they do not do otherwise.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from weight_port import rename
from weight_port.families import heads
from weight_port.rename import KERNEL_LEAVES, NORM_LEAVES


def models(architecture: str) -> tuple[str, ...]:
    """timm's names for an architecture, without tags."""
    return (architecture,)


def architecture_of(model: str) -> str:
    """Our name for a model of timm's, if it is of this family."""
    return model


def label(architecture: str) -> str:
    """timm's names for an architecture in one word."""
    return architecture


def leaves(to_flax: Callable[[str], str]) -> Callable[[str], Mapping[str, tuple[str, str]]]:
    """`rename.Names.leaves` of a family whose norms are those layers that end in "norm" or "norm1".

    to_flax: timm's name of a module -> ours, "" if the family has none of that name.
    """

    def of(module: str) -> Mapping[str, tuple[str, str]]:
        ours = to_flax(module)
        return {} if not ours else NORM_LEAVES if re.search(r"norm\d?$", ours) else KERNEL_LEAVES

    return of


def to_flax_layout(
    array: np.ndarray, path: str = "", shape: Sequence[int] | None = None
) -> np.ndarray:
    """A torch tensor, laid out as the weight file has it in 2D."""
    return rename.to_flax_layout(array)


def to_torch_layout(array: np.ndarray, path: str = "") -> np.ndarray:
    """A tensor of a 2D weight file, laid out as torch has it: the inverse of `to_flax_layout`."""
    return rename.to_torch_layout(array)


def feature_modules(network: Any) -> list[Any]:
    """timm's modules whose outputs are the features: those of its own `features_only`."""
    return [network.get_submodule(info["module"]) for info in network.feature_info]


def logits(
    architecture: str,
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
) -> jax.Array:
    """Logits of an encoder's last feature: mean over all pixels, classifier `fc`.

    Args, returns, raises: as `families.efficientnet.logits`.
    """
    head = heads.tensors(arrays, "fc/kernel", "fc/bias")
    x = jnp.mean(jnp.asarray(feature).reshape(feature.shape[0], -1, feature.shape[-1]), 1)
    return x @ head["fc/kernel"] + head["fc/bias"][None]
