"""Residual networks as encoders, 2D or 3D from one body of code: ResNet, RegNet and their kin.

The networks of a family are `Network`s; its own file has their tables.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from crossdim_jax.models.conv import Conv, Depth
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.family import Encoder, EncoderModule, Feature
from crossdim_jax.models.layers import DropPath, Norm, SqueezeExcite, max_pool
from crossdim_jax.ops import ACTIVATIONS


class Block(NamedTuple):
    """A residual block: two 3x3 convolutions, or a 3x3 one between two of 1x1.

    Attributes:
      kind: "basic" (two) or "bottleneck" (three).
      channels: of its output.
      width: of the channels in between.
      stride: of the 3x3 convolution, or of the first one, see `stride_first`.
      shortcut: whether the input goes through a 1x1 convolution and a norm before it is added.
      group: input channels per group of a bottleneck's 3x3 convolution; 0: all of them.
      reduced: channels within squeeze-and-excitation, after the 3x3 convolution; 0: there is none.
      stride_first: whether a bottleneck's first 1x1 convolution has the stride.
      bias: whether convolutions have a bias, though a norm follows.
    """

    kind: str
    channels: int
    width: int
    stride: int
    shortcut: bool
    group: int = 0
    reduced: int = 0
    stride_first: bool = False
    bias: bool = False


class Network(NamedTuple):
    """A residual network, block by block.

    Attributes:
      stem: channels of the first convolution, which has stride 2.
      window: of the first convolution.
      pool: whether stage 0 begins with max pooling, 3 voxels wide with stride 2.
      stages: their blocks; the output of each is handed on.
      resolution: pixels of the square images that the classifier is trained on.
    """

    stem: int
    window: int
    pool: bool
    stages: tuple[tuple[Block, ...], ...]
    resolution: int = 224


def strides(name: str, net: Network) -> Strides:
    """Strides of stem and stages; the pooling is stage 0's."""
    first, *others = (blocks[0].stride for blocks in net.stages)
    in_plane = (2, first * (2 if net.pool else 1), *others)
    return Strides(
        name, in_plane, (net.window, *(3 for _ in net.stages)), tuple(range(len(in_plane)))
    )


def feature_info(name: str, net: Network) -> tuple[Feature, ...]:
    """Channels and reduction in the plane of the stem and of each stage, finest first."""
    channels = (net.stem, *(blocks[-1].channels for blocks in net.stages))
    return tuple(map(Feature, channels, strides(name, net).reductions()))


def parameters(net: Network, in_channels: int = 3) -> int:
    """Parameters of a 2D encoder; counted, as tracing all networks takes long."""
    c, total = net.stem, 0
    for block in (block for blocks in net.stages for block in blocks):
        per_output = 3 if block.bias else 2  # scale and bias of the norm, bias of the convolution
        wide, out = block.width, block.channels
        if block.kind == "basic":
            total += (9 * c + per_output) * wide + (9 * wide + per_output) * out
        else:
            total += (c + per_output) * wide + (9 * (block.group or wide) + per_output) * wide
            total += (wide + per_output) * out
        if block.reduced:
            total += 2 * wide * block.reduced + wide + block.reduced
        total += (c + per_output) * out if block.shortcut else 0
        c = out
    bias = net.stages[0][0].bias
    return total + (net.window**2 * in_channels + 2 + bias) * net.stem


class ResidualBlock(nn.Module):
    """A block, see `Block`.

    Attributes:
      block: its numbers.
      depth: its stage's ways along depth.
      drop_path_rate: of its residual branch.
      norm, padding, eps, dtype, ops_mode: see `ResidualNet`.
    """

    block: Block
    depth: Depth
    drop_path_rate: float
    norm: str
    padding: str
    eps: float
    dtype: Any
    ops_mode: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        block, y = self.block, x
        conv = functools.partial(self._conv_norm, train=train)
        if block.kind == "basic":
            y = conv(y, 1, block.width, 3, block.stride)
            y = conv(y, 2, block.channels, 3, activation=None)
        else:
            first, second = (block.stride, 1) if block.stride_first else (1, block.stride)
            y = conv(y, 1, block.width, 1, first)
            y = conv(y, 2, block.width, 3, second, group=block.group)
            if block.reduced:
                y = SqueezeExcite(block.reduced, "relu", self.dtype, self.ops_mode, name="se")(y)
            y = conv(y, 3, block.channels, 1, activation=None)
        if block.shortcut:
            x = conv(x, 0, block.channels, 1, block.stride, activation=None)
        y = DropPath(self.drop_path_rate, name="drop_path")(y, train=train)
        return ACTIVATIONS["relu"](x + y)

    def _conv_norm(
        self, x, number, features, window, stride=1, *, activation="relu", group=0, train=False
    ):
        """Convolution and norm of that number; 0 is the shortcut's."""
        x = Conv(
            features,
            window,
            stride,
            self.padding,
            use_bias=self.block.bias,
            group_size=group,
            depth=self.depth if stride > 1 else self.depth.unstrided(),
            dtype=self.dtype,
            ops_mode=self.ops_mode,
            name=f"conv{number}" if number else "shortcut",
        )(x)
        name = f"norm{number}" if number else "shortcut_norm"
        norm = Norm(self.norm, activation, self.eps, dtype=self.dtype, name=name)
        return norm(x, train=train)


class ResidualNet(EncoderModule, kw_only=True):
    """The convolutional body of a residual network.

    `__call__(x (b, *spatial, c))` returns features `(b, *spatial / reduction, channels)`, finest
    first, as `feature_info` says: the stem's activated output, then each stage's.

    The depth options are for volumes; a 2D network ignores them. An entry for each stage means a
    tuple whose entry 0 is the stem's. Max pooling is stage 0's: along depth it takes no more voxels
    than `depth_kernels` says, and one where it has no stride.

    Attributes:
      network: its blocks.
      title: the encoder's name, for messages.
      norm, padding, eps, drop_path_rate, depth_kernels, depth_strides, depth_padding, factorised,
        dtype, ops_mode: see `encoders.EncoderSpec`; the stochastic depth grows from 0 at the first
        block.
    """

    network: Network
    title: str

    def strides(self) -> Strides:
        """See `EncoderModule.strides`."""
        return strides(self.title, self.network)

    def depths(self) -> tuple[Depth, ...]:
        """Depth options of the stem, then of each stage.

        Raises:
          ValueError: they do not fit, see `Strides.depths`, or are to be factorised where no
            convolution is grouped.
        """
        if self.factorised and not any(b.group for blocks in self.network.stages for b in blocks):
            raise ValueError(f"{self.title!r} has no grouped convolution that could be factorised")
        return super().depths()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        net, (depth, *stage_depths) = self.network, self.depths()
        shared = {"dtype": self.dtype, "ops_mode": self.ops_mode}
        bias = net.stages[0][0].bias
        stem = Conv(net.stem, net.window, 2, self.padding, bias, depth=depth, name="stem", **shared)
        norm = Norm(self.norm, "relu", self.eps, dtype=self.dtype, name="stem_norm")
        x = norm(stem(x), train=train)
        features, index, total = [x], 0, sum(map(len, net.stages))
        for s, (blocks, depth) in enumerate(zip(net.stages, stage_depths, strict=True)):
            if s == 0 and net.pool:
                x = max_pool(x, 3, 2, self.padding, depth, self.ops_mode)
                depth = depth.unstrided()
            for i, block in enumerate(blocks):
                x = ResidualBlock(
                    block,
                    depth,
                    self.drop_path_rate * index / total,
                    self.norm,
                    self.padding,
                    self.eps,
                    **shared,
                    name=f"stages_{s}_{i}",
                )(x, train=train)
                index += 1
            features.append(x)
        return features


def encoder(family: str, name: str, network: Callable[[], Network]) -> Encoder:
    """Row of an encoder whose blocks `network()` gives."""
    return Encoder(
        family=family,
        build=lambda **attributes: ResidualNet(network=network(), title=name, **attributes),
        stem="stem/kernel",
        norm="batch",
        info=lambda: feature_info(name, network()),
        strides=lambda: strides(name, network()),
        stage=r"(stages_(\d+))_\d+/",
    )
