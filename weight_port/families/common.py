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


def block_names(
    layers: Mapping[str, str], in_block: Mapping[str, str], form: str, *, first: int
) -> tuple[Callable[[str], str], Callable[[str], str]]:
    """Renaming of a residual network's modules: timm's name -> ours, and the inverse.

    Either gives "" for what is not of the family.

    Args:
      layers: outside of blocks.
      in_block: within each of them.
      form: of a block in timm, such as "layer{}.{}", with its stage from 1 and its number.
      first: the number of a stage's first block in timm.
    """
    pattern = re.compile(form.replace(".", r"\.").format(r"([1-4])", r"(\d+)") + r"\.(.+)")

    def to_flax(module: str) -> str:
        match = pattern.fullmatch(module)
        if match is None:
            return layers.get(module, "")
        layer = in_block.get(match[3])
        return f"stages_{int(match[1]) - 1}_{int(match[2]) - first}.{layer}" if layer else ""

    def to_torch(module: str) -> str:
        match = re.fullmatch(r"stages_(\d)_(\d+)\.(.+)", module)
        if match is None:
            return rename.inverse(layers).get(module, "")
        layer = rename.inverse(in_block).get(match[3], "")
        return f"{form.format(int(match[1]) + 1, int(match[2]) + first)}.{layer}"

    return to_flax, to_torch


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


def pooled_logits(classifier: str) -> Callable[..., jax.Array]:
    """`logits` of a family whose head is a mean over all pixels and one layer of that name.

    Args, returns, raises of the result: as `families.efficientnet.logits`.
    """

    def logits(
        architecture: str,
        arrays: Mapping[str, np.ndarray],
        feature: np.ndarray | jax.Array,
        *,
        eps: float,
    ) -> jax.Array:
        del architecture, eps
        kernel, bias = f"{classifier}/kernel", f"{classifier}/bias"
        head = heads.tensors(arrays, kernel, bias)
        x = jnp.mean(jnp.asarray(feature).reshape(feature.shape[0], -1, feature.shape[-1]), 1)
        return x @ head[kernel] + head[bias][None]

    return logits


logits = pooled_logits("fc")
