"""ConvNeXt as an encoder, 2D or 3D from one body of code; it begins at /4.

Parameter names follow timm, so that porting weights is renaming. Reference: Liu et al. 2022.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax import ops
from crossdim_jax.errors import lookup
from crossdim_jax.models.conv import Conv, Depth
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.family import LAYER, Encoder, EncoderModule, Feature
from crossdim_jax.models.initial import Initialiser, ones, zeros
from crossdim_jax.models.layers import DropPath

WINDOW, PATCH, EXPANSION = 7, 4, 4  # of depthwise kernels, of the stem, within a block
IN_PLANE = (PATCH, 1, 2, 2, 2)  # strides of the stem and of each stage
LAYER_SCALE = 1e-6  # with which a branch starts
RESOLUTION = 224  # pixels of the classifier's images


class Row(NamedTuple):
    """Blocks and channels of each stage."""

    blocks: tuple[int, ...]
    channels: tuple[int, ...]


ROWS = {
    "tiny": Row((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": Row((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": Row((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": Row((3, 3, 27, 3), (192, 384, 768, 1536)),
}


def strides(variant: str) -> Strides:
    """Strides of the stem and the stages, each of which hands on a feature."""
    return Strides(f"convnext_{variant}", IN_PLANE, (PATCH, *(WINDOW,) * 4), (1, 2, 3, 4))


def feature_info(variant: str) -> tuple[Feature, ...]:
    """Channels and reduction of the four features of a variant, finest first."""
    return tuple(map(Feature, ROWS[variant].channels, strides(variant).reductions()))


def parameters(variant: str, in_channels: int = 3) -> int:
    """Parameters of a variant's 2D encoder."""
    row = ROWS[variant]
    before, total = row.channels[0], (PATCH**2 * in_channels + 3) * row.channels[0]
    for s, (blocks, c) in enumerate(zip(row.blocks, row.channels, strict=True)):
        total += (2 + 4 * c) * before + c if s else 0
        total += blocks * (2 * EXPANSION * c + WINDOW**2 + 5 + EXPANSION) * c
        before = c
    return total


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of every voxel; statistics are float32.

    Reference: Ba et al. 2016.
    """

    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = x.shape[-1]
        shape = (1,) * (x.ndim - 1) + (c,)
        scale = self.param("scale", ones, (c,)).reshape(shape)
        bias = self.param("bias", zeros, (c,)).reshape(shape)
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, -1, keepdims=True)
        variance = jnp.mean(jnp.square(wide), -1, keepdims=True)
        return (wide * jax.lax.rsqrt(variance + self.eps) * scale + bias).astype(self.dtype)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm, two 1x1 convolutions, layer scale; residual.

    Attributes:
      depth: its stage's ways along depth.
      drop_path_rate: of its residual branch.
      eps, dtype, ops_mode: see `ConvNeXt`.
    """

    depth: Depth
    drop_path_rate: float
    eps: float
    dtype: Any
    ops_mode: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        c = x.shape[-1]
        shared = {"use_bias": True, "dtype": self.dtype, "ops_mode": self.ops_mode}
        depthwise = {"group_size": 1, "depth": self.depth.unstrided(), "padding": "symmetric"}
        y = Conv(0, WINDOW, **depthwise, **shared, name="conv_dw")(x)
        y = ChannelNorm(self.eps, self.dtype, name="norm")(y)
        y = ops.ACTIVATIONS["gelu"](Conv(EXPANSION * c, 1, **shared, name="mlp_fc1")(y))
        y = Conv(c, 1, **shared, name="mlp_fc2")(y)
        y = ops.scale_channels(y, self.param("gamma", Initialiser(LAYER_SCALE), (c,)))
        return x + DropPath(self.drop_path_rate, name="drop_path")(y, train=train)


class ConvNeXt(EncoderModule, kw_only=True):
    """The convolutional body of a ConvNeXt.

    `__call__(x (b, *spatial, c))` returns four features `(b, *spatial / reduction, channels)`,
    finest first, at 1/4 to 1/32.

    Attributes:
      variant: a key of `ROWS`.
      norm, padding: for the layers around it. Its own norm is over the channels of each voxel,
        which is nothing that a norm over voxels or its running statistics could take the place of;
        its windows either keep the size or do not overlap, where every padding is the same.
      eps: of its norms, 1e-6 for published weights.
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      depth_kernels, depth_strides, depth_padding, factorised, dtype, ops_mode: see `EncoderModule`.
        A stride takes whole windows in the plane; along depth also the last part of one.
    """

    variant: str = "tiny"
    norm: str = LAYER
    eps: float = 1e-6
    drop_path_rate: float = 0.2

    def strides(self) -> Strides:
        """See `EncoderModule.strides`."""
        return strides(self.variant)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        row = lookup("variant", self.variant, ROWS)
        shared = {"dtype": self.dtype, "ops_mode": self.ops_mode}
        patches = {"padding": "none", "use_bias": True, **shared}
        depth, *stage_depths = self.depths()
        x = Conv(row.channels[0], PATCH, PATCH, depth=depth, name="stem_0", **patches)(x)
        x = ChannelNorm(self.eps, self.dtype, name="stem_1")(x)
        features, index = [], 0
        for s, (count, width) in enumerate(zip(row.blocks, row.channels, strict=True)):
            depth, stride = stage_depths[s], IN_PLANE[s + 1]
            if stride > 1:
                x = ChannelNorm(self.eps, self.dtype, name=f"stages_{s}_downsample_0")(x)
                name = f"stages_{s}_downsample_1"
                x = Conv(width, stride, stride, depth=depth, name=name, **patches)(x)
            for i in range(count):
                rate = self.drop_path_rate * index / max(sum(row.blocks) - 1, 1)
                block = ConvNeXtBlock(
                    depth, rate, self.eps, **shared, name=f"stages_{s}_blocks_{i}"
                )
                x, index = block(x, train=train), index + 1
            features.append(x)
        return features


def encoder(variant: str) -> Encoder:
    """Row of a variant, a key of `ROWS`."""
    return Encoder(
        family="convnext",
        build=functools.partial(ConvNeXt, variant=variant),
        stem="stem_0/kernel",
        norm=LAYER,
        info=functools.partial(feature_info, variant),
        strides=functools.partial(strides, variant),
        stage=r"(stages_(\d+))_",
    )


ENCODERS = {f"convnext_{variant}": encoder(variant) for variant in ROWS}
