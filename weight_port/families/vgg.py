"""VGG as timm has it: names, conventions, renaming, classification head.

Layers are counted through, `features.7.weight`: which convolution or norm that is depends on the
network, so each has a family of its own. The head is two convolutions and a classifier.
"""

import re
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.models import vgg
from weight_port.families import common, heads
from weight_port.formats.scheme import BIASED, NORM, PYTORCH, Scheme, tensors, timm
from weight_port.rename import Names, inverse

# timm's head, whose layers are convolutions -> torchvision's.
_HEAD = {"pre_logits.fc1": "classifier.0", "pre_logits.fc2": "classifier.3"}
_HEAD |= {"head.fc": "classifier.6"}
SIDE = 7  # pixels that the head's first convolution sees


def modules(architecture: str) -> dict[str, str]:
    """timm's name of each module -> ours."""
    variant = architecture.removesuffix("_bn")
    layers = ("", "_norm", None) if variant != architecture else ("", None)  # None: activation
    found, number = {}, 0
    for stage, count in enumerate(vgg.ROWS[variant]):
        for i in range(count):
            for layer in layers:
                if layer is not None:
                    found[f"features.{number}"] = f"stages_{stage}_{i}{layer}"
                number += 1
        number += 1  # the pooling
    return found | {"pre_logits.fc1": "fc1", "pre_logits.fc2": "fc2", "head.fc": "fc"}


def _layers(architecture: str) -> dict[str, tuple[str, ...]]:
    """timm's name of each layer -> its tensors."""
    found = modules(architecture)
    return {timms: NORM if ours.endswith("norm") else BIASED for timms, ours in found.items()}


def torchvision_names(architecture: str) -> dict[str, str]:
    """torchvision's name of each tensor -> timm's; they differ in the head."""
    return tensors(_layers(architecture), lambda layer: _HEAD.get(layer, layer))


def as_convolution(name: str, array: np.ndarray) -> np.ndarray:
    """torchvision's linear layers (out, c * 7 * 7) and (out, in), as timm's convolutions."""
    if not name.startswith("pre_logits.") or array.ndim != 2:
        return array
    side = SIDE if "fc1" in name else 1
    return array.reshape(len(array), -1, side, side)


def _convention(model: str) -> tuple[str, float]:
    """Padding and eps of the weights timm has under a model's name."""
    return PYTORCH


class Family:
    """The family of one network, see `families`."""

    LEFT_OUT: ClassVar[dict[str, str]] = {}
    SCHEMES: ClassVar = (
        timm(_layers, _convention),
        Scheme(
            "torchvision", "torchvision's names", torchvision_names, _convention, as_convolution
        ),
    )
    CLASSIFIER: ClassVar = "head.fc"  # timm's name of the last layer

    convention = staticmethod(_convention)
    models = staticmethod(common.models)
    architecture_of = staticmethod(common.architecture_of)
    label = staticmethod(common.label)
    to_flax_layout = staticmethod(common.to_flax_layout)
    to_torch_layout = staticmethod(common.to_torch_layout)
    feature_modules = staticmethod(common.feature_modules)

    def __init__(self, architecture: str):
        found = modules(architecture)
        to_flax, to_torch = (
            lambda module, table=table: table.get(module, "") for table in (found, inverse(found))
        )
        head = re.compile(r"pre_logits\.fc[12]|head\.fc")
        self._names = Names(common.leaves(to_flax), to_flax, to_torch, head)
        self.flax_path, self.torch_name = self._names.flax_path, self._names.torch_name
        self.of_head = self._names.of_head

    def notes(self, paddings: Mapping[str, str]) -> list[str]:
        """Lines that explain the conventions of these models, model -> padding."""
        return ["vgg: symmetric padding, eps 1e-5; without _bn there are no norms."]

    def size(self, architecture: str) -> tuple[int, int]:
        """Parameters of the 2D encoder with 3 input channels, and pixels of its images."""
        variant = architecture.removesuffix("_bn")
        return vgg.parameters(variant, normalised=variant != architecture), 224

    def logits(
        self,
        architecture: str,
        arrays: Mapping[str, np.ndarray],
        feature: np.ndarray | jax.Array,
        *,
        eps: float,
    ) -> jax.Array:
        """Logits of an encoder's last feature, 2D: two convolutions, mean, classifier.

        A feature that is smaller than the first one's window is stretched to it.

        Args, returns, raises: as `families.efficientnet.logits`.
        """
        layers = ("fc1", "fc2", "fc")
        needed = (f"{layer}/{leaf}" for layer in layers for leaf in ("kernel", "bias"))
        head, x = heads.tensors(arrays, *needed), jnp.asarray(feature)
        if min(x.shape[1:3]) < SIDE:
            rows, columns = (_means(n, max(n, SIDE)) for n in x.shape[1:3])
            x = jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)
        for layer in layers[:2]:
            x = ops.conv_lax(x, head[f"{layer}/kernel"], (1, 1), ((0, 0), (0, 0)))
            x = jax.nn.relu(x + head[f"{layer}/bias"][None, None, None])
        return x.mean((1, 2)) @ head["fc/kernel"] + head["fc/bias"][None]


def _means(n: int, bins: int) -> np.ndarray:
    """(bins, n): each bin is the mean of the pixels it touches when it is 1 / bins of the length.

    As PyTorch's adaptive pooling.
    """
    found = np.zeros((bins, n), np.float32)
    for i in range(bins):
        first, last = i * n // bins, -(-(i + 1) * n // bins)
        found[i, first:last] = 1 / (last - first)
    return found


FAMILIES = {architecture: Family(architecture) for architecture in vgg.ENCODERS}
