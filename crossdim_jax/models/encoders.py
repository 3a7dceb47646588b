"""The encoders a network can be built on.

A network asks its encoder for its features, by calling it, and before that for their channels and
reductions: these begin at /1, /2 or /4. Adding a family of encoders is adding a file and naming it
in `FAMILIES`.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import lookup
from crossdim_jax.models import (
    convnext,
    densenet,
    efficientnet,
    mobilenetv2,
    mobilenetv3,
    regnet,
    resnet,
    vgg,
)
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.family import FIXED, Encoder, Feature
from crossdim_jax.models.layers import check_norm
from crossdim_jax.ops import explicit_padding

FAMILIES = (
    efficientnet,
    resnet,
    regnet,
    vgg,
    convnext,
    densenet,
    mobilenetv2,
    mobilenetv3,
)
ENCODERS: dict[str, Encoder] = {
    name: row for family in FAMILIES for name, row in family.ENCODERS.items()
}


def row(encoder: str) -> Encoder:
    """Row of that name. Raises ConfigError listing the known ones if there is none."""
    return lookup("encoder", encoder, ENCODERS)


def build(encoder: str, /, **kwargs: Any) -> nn.Module:
    """Encoder module of that name."""
    return row(encoder).build(**kwargs)


def stem(encoder: str) -> str:
    """Path of its first kernel within the encoder."""
    return row(encoder).stem


def norm(encoder: str) -> str:
    """Norm that its weights are made for."""
    return row(encoder).norm


def stage(encoder: str, path: str) -> tuple[str, int] | None:
    """Name and number of the stage that a parameter is in; None if it is in none.

    Args:
      encoder: a key of `ENCODERS`.
      path: of the parameter within the encoder.
    """
    match = re.match(row(encoder).stage, path)
    return (match[1], int(match[2])) if match else None


def feature_info(encoder: str) -> tuple[Feature, ...]:
    """Channels and reduction of its features, finest first."""
    return row(encoder).info()


def depth_reductions(encoder: str, strides: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Reduction of each feature along depth with those `depth_strides`.

    Raises:
      ValueError: the name is unknown, or the strides do not fit it.
    """
    return row(encoder).strides().depth_reductions(strides)


def grouped_kernels(encoder: str) -> frozenset[str]:
    """Paths, within the encoder, of the kernels of its grouped convolutions, depthwise ones too."""
    found = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, Conv) and context.module.group_size:
            found.add("/".join((*context.module.path, "kernel")))
        return call(*args, **kwargs)

    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with nn.intercept_methods(note):
        jax.eval_shape(build(encoder, norm=norm(encoder)).init, jax.random.key(0), image)
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class EncoderSpec:
    """An encoder as a network has it: which one, its weights' conventions, its ways along depth.

    Attributes:
      name: a key of `ENCODERS`.
      norm: one of `layers.NORMS`; of the layers around it alone if its own is `family.FIXED`.
      padding: "same" for TensorFlow-trained weights, "symmetric" for PyTorch-trained ones; the two
        are not interchangeable at stride 2.
      eps: of the norms; 1e-3 for TensorFlow-trained weights, 1e-5 for PyTorch-trained ones.
      drop_path_rate: stochastic depth of the last block.
      depth_kernels: taps along depth of every kernel with a window: None: as many as in the plane;
        a number, or one for each stage, the stem first.
      depth_strides: strides along depth: None: those of the plane; a number, which takes their
        place, or one for each stage, the stem first.
      depth_padding: "zero", "edge" or "reflect" beyond the first and the last slice.
      factorised: whether depthwise convolutions are one in the plane, then a filter along depth.
    """

    name: str = "efficientnet_b0"
    norm: str = "batch"
    padding: str = "same"
    eps: float = 1e-3
    drop_path_rate: float = 0.2
    depth_kernels: int | tuple[int, ...] | None = None
    depth_strides: int | tuple[int, ...] | None = None
    depth_padding: str = "zero"
    factorised: bool = False

    @property
    def fresh_norm(self) -> str:
        """Norm of the layers around the encoder, which start from random numbers.

        For these there are no statistics to keep frozen.
        """
        return "batch" if self.norm == "frozen" else self.norm

    @property
    def own_norm(self) -> str:
        """Norm inside the encoder: `norm`, unless that is one of `family.FIXED`."""
        own = norm(self.name)
        return own if own in FIXED else self.norm

    def build(
        self, *, dtype: Any = jnp.float32, ops_mode: str = "auto", name: str | None = None
    ) -> nn.Module:
        """Encoder module, whose own name is `name`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return build(fields.pop("name"), **fields, dtype=dtype, ops_mode=ops_mode, name=name)

    def feature_info(self) -> tuple[Feature, ...]:
        """Channels and reduction of its features, finest first."""
        return feature_info(self.name)

    def reductions(self) -> tuple[int, ...]:
        """Reduction of each feature in the plane, finest first: 1, or 2, or 4, and so on."""
        return tuple(feature.reduction for feature in self.feature_info())

    def depth_reductions(self) -> tuple[int, ...]:
        """Reduction of each feature along depth, finest first."""
        return depth_reductions(self.name, self.depth_strides)

    def check(self) -> None:
        """Raises ValueError if a name is unknown or the depth options do not fit the encoder.

        Meant for when a network is built: the message should come before any data is read.
        """
        row(self.name)
        check_norm(self.norm)
        explicit_padding((), (), (), self.padding)
        self.build().depths()


# Field of a config's section `model` -> field of the spec; those along depth are for volumes.
PLANE_FIELDS = {
    **{"encoder": "name", "norm": "norm", "padding": "padding"},
    **{"encoder_eps": "eps", "drop_path_rate": "drop_path_rate"},
}
DEPTH_FIELDS = {
    name: name for name in ("depth_kernels", "depth_strides", "depth_padding", "factorised")
}


def split_spec(
    attributes: Mapping[str, Any], *, deep: bool = False
) -> tuple[EncoderSpec, dict[str, Any]]:
    """Encoder that a network's settings speak of, and the settings that are the network's own.

    Args:
      attributes: settings by the names of a config; None stands for a default. Sequences may be
        lists.
      deep: whether the network takes options along depth; if not they are left with its own.
    """
    given = {name: value for name, value in attributes.items() if value is not None}
    fields = PLANE_FIELDS | (DEPTH_FIELDS if deep else {})
    spec = {
        fields[name]: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if name in fields
    }
    return EncoderSpec(**spec), {k: v for k, v in given.items() if k not in fields}
