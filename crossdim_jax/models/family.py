"""The contract of an encoder: a row for each member of a family of networks.

A family is a file that has `ENCODERS`, name -> `Encoder`; `encoders.FAMILIES` lists the files.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from crossdim_jax.models.conv import Depth
from crossdim_jax.models.depth import Strides

LAYER = "layer"  # LayerNorm over the channels of each voxel
NONE = "none"  # no norms at all
FIXED = (LAYER, NONE)  # norms of an encoder that none of `layers.NORMS` takes the place of


class EncoderModule(nn.Module, kw_only=True):
    """Base of the Linen modules of encoders: the attributes that `EncoderSpec.build` gives to all.

    The depth options are for volumes; a 2D network ignores them. An entry for each stage means a
    tuple whose entry 0 is the stem's.

    Attributes:
      norm: "batch", "frozen", "instance" or "group", see `layers.Norm`.
      padding: "same" for TensorFlow-trained weights, "symmetric" for PyTorch-trained ones; the two
        are not interchangeable at stride 2.
      eps: of the norms; 1e-3 for TensorFlow-trained weights, 1e-5 for PyTorch-trained ones.
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      depth_kernels: taps along depth of every convolution that has more than one in the plane:
        None: as many as there; a number, or one for each stage.
      depth_strides: strides along depth: None: those of the plane; a number, which takes their
        place, or one for each stage, 1 where the plane has none.
      depth_padding: "zero", "edge" or "reflect" beyond the first and the last slice.
      factorised: whether depthwise convolutions are one in the plane, then a filter along depth.
      dtype: compute dtype; parameters are float32.
      ops_mode: "auto", "lax", "fast" or "unfolded", see `ops.choose`.
    """

    norm: str = "batch"
    padding: str = "symmetric"
    eps: float = 1e-5
    drop_path_rate: float = 0.0
    depth_kernels: int | tuple[int, ...] | None = None
    depth_strides: int | tuple[int, ...] | None = None
    depth_padding: str = "zero"
    factorised: bool = False
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    def strides(self) -> Strides:
        """The network's strides."""
        raise NotImplementedError

    def depths(self) -> tuple[Depth, ...]:
        """Depth options of the stem, then of each stage; ValueError as `Strides.depths` says."""
        return self.strides().depths(
            self.depth_kernels, self.depth_strides, self.depth_padding, self.factorised
        )


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
