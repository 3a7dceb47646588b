"""EfficientNet as an encoder, 2D or 3D from one body of code.

The networks are rows of `efficientnet_table`; parameter names follow timm, so that porting weights
is renaming.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.models.conv import Blur, Conv, Depth
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.efficientnet_table import ROWS, VARIANTS, Block, Network, network
from crossdim_jax.models.family import Encoder, EncoderModule, Feature
from crossdim_jax.models.layers import DropPath, Norm, SqueezeExcite


def feature_info(variant: str, net: Network | None = None) -> tuple[Feature, ...]:
    """Channels and reduction (in the plane) of the five features of a variant, finest first."""
    net = net or network(variant)
    channels = (net.stem, *(net.stages[s][-1].channels for s in net.features))
    return tuple(map(Feature, channels, strides(variant, net).reductions()))


def strides(variant: str, net: Network | None = None) -> Strides:
    """Strides of a variant's stem and stages, and which of them hand on a feature."""
    net = net or network(variant)
    in_plane = (2, *(blocks[0].stride for blocks in net.stages))
    windows = (3, *(blocks[0].window for blocks in net.stages))
    return Strides(variant, in_plane, windows, (0, *(s + 1 for s in net.features)))


class EfficientNetBlock(nn.Module):
    """A block of any kind, see `efficientnet_table.Stage`.

    Attributes:
      block: its numbers.
      depth: its stage's ways along depth.
      drop_path_rate: of its residual branch.
      norm, norm_group, padding, eps, dtype, ops_mode: see `EfficientNet`.
    """

    block: Block
    depth: Depth
    drop_path_rate: float
    norm: str
    norm_group: int
    padding: str
    eps: float
    dtype: Any
    ops_mode: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        block, act = self.block, self.block.activation
        routing = self._routing(x) if block.experts else None
        y, stride = x, block.stride
        if block.fold:
            fold = self._conv("conv_s2d", block.expanded, 2, stride, padding="same")
            y, stride = self._norm("bn_s2d", act, fold(y), train), 1
        windowed = {"window": block.window, "stride": 1 if block.blur else stride}
        if block.window % 2 == 0:
            windowed["padding"] = "same"  # the only way an even window keeps the size
        if block.kind == "plain":
            y = self._conv("conv", block.channels, **windowed)(y)
            y = self._blurred(self._norm("bn1", act, y, train))
        else:
            count = 1  # of norms: timm numbers them
            if block.kind == "inverted":
                y = self._conv("conv_pw", block.expanded, experts=block.experts)(y, routing=routing)
                y, count = self._norm("bn1", act, y, train), 2
            if block.kind == "fused":
                y = self._conv("conv_exp", block.expanded, **windowed)(y)
            else:
                grouped = {"group_size": block.group, "experts": block.experts}
                y = self._conv("conv_dw", 0, **windowed, **grouped)(y, routing=routing)
            y = self._blurred(self._norm(f"bn{count}", act, y, train))
            if block.reduced:
                inner = block.gate_activation or act
                gate = SqueezeExcite(
                    block.reduced, inner, self.dtype, self.ops_mode, block.gate, name="se"
                )
                y = gate(y)
            last = "conv_pw" if block.kind == "separable" else "conv_pwl"
            y = self._conv(last, block.channels, experts=block.experts)(y, routing=routing)
            y = self._norm(f"bn{count + 1}", None, y, train)
        if block.skip:
            y = x + DropPath(self.drop_path_rate, name="drop_path")(y, train=train)
        return y

    def _conv(self, name, features, window=1, stride=1, padding=None, group_size=0, experts=0):
        depth = self.depth if stride > 1 else self.depth.unstrided()
        return Conv(
            features,
            window,
            stride,
            padding or self.padding,
            group_size=group_size,
            experts=experts,
            depth=depth,
            dtype=self.dtype,
            ops_mode=self.ops_mode,
            name=name,
        )

    def _norm(self, name, activation, x, train):
        module = Norm(
            self.norm,
            activation,
            self.eps,
            group_size=self.norm_group,
            dtype=self.dtype,
            name=name,
        )
        return module(x, train=train)

    def _blurred(self, x):
        if not self.block.blur:
            return x
        return Blur(self.block.stride, self.depth, self.ops_mode, name="blur")(x)

    def _routing(self, x):
        """Each sample's weights of the experts, `(b, experts)`, from the mean over its voxels."""
        axes = tuple(range(1, x.ndim - 1))
        pooled = jnp.mean(x.astype(jnp.float32), axes, keepdims=True)
        logits = Conv(
            self.block.experts, 1, use_bias=True, ops_mode=self.ops_mode, name="routing_fn"
        )(pooled)
        return jax.nn.sigmoid(logits.reshape(x.shape[0], -1))


class EfficientNet(EncoderModule, kw_only=True):
    """The convolutional body of an EfficientNet.

    `__call__(x (b, *spatial, c))` returns five features `(b, *spatial / reduction, channels)`,
    finest first, as `feature_info` says: the stem's activated output /2, then the last block's
    output at /4, /8, /16 and /32 (B0: stages 1, 2, 4 and 6).

    Attributes:
      variant: a key of `efficientnet_table.ROWS`.
      norm, padding, ..., ops_mode: see `EncoderModule`.
    """

    variant: str = "b0"
    padding: str = "same"
    eps: float = 1e-3
    drop_path_rate: float = 0.2

    def network(self) -> Network:
        """The blocks that it is made of."""
        return network(self.variant)

    def strides(self) -> Strides:
        """See `EncoderModule.strides`."""
        return strides(self.variant, self.network())

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        net = self.network()
        depth, *stage_depths = self.depths()
        shared = {"dtype": self.dtype, "ops_mode": self.ops_mode}
        x = Conv(net.stem, 3, 2, self.padding, depth=depth, name="conv_stem", **shared)(x)
        norm = Norm(
            self.norm,
            net.activation,
            self.eps,
            group_size=net.norm_group,
            dtype=self.dtype,
            name="bn1",
        )
        x = norm(x, train=train)
        features, index = [x], 0
        total = sum(map(len, net.stages))
        for s, (blocks, depth) in enumerate(zip(net.stages, stage_depths, strict=True)):
            for i, block in enumerate(blocks):
                x = EfficientNetBlock(
                    block,
                    depth,
                    self.drop_path_rate * index / total,
                    self.norm,
                    net.norm_group,
                    self.padding,
                    self.eps,
                    **shared,
                    name=f"blocks_{s}_{i}",
                )(x, train=train)
                index += 1
            if s in net.features:
                features.append(x)
        return features


def encoder(variant: str) -> Encoder:
    """Row of a variant, a key of `efficientnet_table.ROWS`."""
    return Encoder(
        family="efficientnet",
        build=functools.partial(EfficientNet, variant=variant),
        stem="conv_stem/kernel",
        norm=ROWS[variant].norm,
        info=functools.partial(feature_info, variant),
        strides=lambda: strides(variant),
        stage=r"(blocks_(\d+))_\d+/",
    )


def relative(family: str, body: type[EfficientNet], variant: str, net: Network) -> Encoder:
    """Row of a network of another family that is made of these blocks.

    Args:
      family: its name.
      body: its module, which takes the variant.
      variant: a key of the family's own table.
      net: its blocks.
    """
    return Encoder(
        family=family,
        build=functools.partial(body, variant=variant),
        stem="conv_stem/kernel",
        norm=net.norm,
        info=functools.partial(feature_info, variant, net),
        strides=lambda: strides(variant, net),
        stage=r"(blocks_(\d+))_\d+/",
    )


ENCODERS = {name: encoder(variant) for name, variant in VARIANTS.items()}
