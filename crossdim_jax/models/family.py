"""The contract of an encoder: a row for each member of a family of networks.

A family is a file that has `ENCODERS`, name -> `Encoder`; `encoders.FAMILIES` lists the files.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from crossdim_jax.models.depth import Strides

LAYER = "layer"  # LayerNorm over the channels of each voxel
NONE = "none"  # no norms at all
FIXED = (LAYER, NONE)  # norms of an encoder that none of `layers.NORMS` takes the place of


class Feature(NamedTuple):
    """Channels of one encoder output, and by how much it is reduced in the plane."""

    channels: int
    reduction: int


class Encoder(NamedTuple):
    """An encoder's row.

    Attributes:
      family: the name under which `weight_port` knows how its weights are ported.
      build: makes the module; its method `depths()` raises ValueError if its depth options do not
        fit it.
      stem: path of its first kernel, (*k, in, out); its shape tells the rank and the input
        channels, and porting adapts it to them.
      norm: the norm that its weights are made for, "batch" or "group"; or one of `FIXED`, which
        stays whatever the norm of the layers around it.
      info: gives its `Feature`s.
      strides: gives its `Strides`.
      stage: regular expression for the start of a parameter's path inside the encoder, if it is in
        a stage; group 1 is the stage's name, group 2 its number, from 0.
    """

    family: str
    build: Callable[..., nn.Module]
    stem: str
    norm: str
    info: Callable[[], tuple[Feature, ...]]
    strides: Callable[[], Strides]
    stage: str
