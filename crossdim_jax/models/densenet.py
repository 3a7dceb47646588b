"""DenseNet as an encoder, 2D or 3D from one body of code.

Parameter names follow torchvision's and timm's: their `denseblock2.denselayer1` is
`stages_1_denselayer1`, and the transition that leads there is `stages_1_transition_norm` and
`stages_1_transition_conv`. Reference: Huang et al. 2017.
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
from crossdim_jax.models.family import Encoder, EncoderModule, Feature
from crossdim_jax.models.layers import Norm, max_pool

BOTTLENECK = 4  # channels between a layer's two convolutions, per channel of growth
IN_PLANE = (2, 2, 2, 2, 2)  # strides of the stem and of each stage
WINDOWS = (7, 3, 3, 3, 3)
RESOLUTION = 224  # pixels of the classifier's images


class Row(NamedTuple):
    """Channels of the stem, channels that a layer adds, layers of each stage."""

    stem: int
    growth: int
    layers: tuple[int, ...]


ROWS = {
    "121": Row(64, 32, (6, 12, 24, 16)),
    "161": Row(96, 48, (6, 12, 36, 24)),
    "169": Row(64, 32, (6, 12, 32, 32)),
    "201": Row(64, 32, (6, 12, 48, 32)),
}


def strides(variant: str) -> Strides:
    """Strides of the stem and the stages, each of which hands on a feature."""
    return Strides(f"densenet{variant}", IN_PLANE, WINDOWS, (0, 1, 2, 3, 4))


def widths(variant: str) -> tuple[tuple[int, int], ...]:
    """Channels that each stage gets, and that it ends with."""
    row, found, c = ROWS[variant], [], ROWS[variant].stem
    for layers in row.layers:
        found.append((c, c + layers * row.growth))
        c = found[-1][1] // 2
    return tuple(found)


def feature_info(variant: str) -> tuple[Feature, ...]:
    """Channels and reduction of the five features of a variant, finest first."""
    channels = (ROWS[variant].stem, *(end for _, end in widths(variant)))
    return tuple(map(Feature, channels, strides(variant).reductions()))


def parameters(variant: str, in_channels: int = 3) -> int:
    """Parameters of a variant's 2D encoder."""
    row = ROWS[variant]
    between, total = BOTTLENECK * row.growth, (49 * in_channels + 2) * row.stem
    for s, (c, end) in enumerate(widths(variant)):
        total += 4 * c + 2 * c * c if s else 0  # the transition halves 2 c channels
        for width in range(c, end, row.growth):
            total += 2 * width + (width + 2) * between + 9 * between * row.growth
        total += 2 * end if s + 1 == len(row.layers) else 0
    return total


def mean_pool(x: jax.Array, depth: Depth) -> jax.Array:
    """Mean over windows that do not overlap: whole ones in the plane, along depth the rest too."""
    nd = x.ndim - 2
    _, strides = depth.axes(2, 2, nd)
    if nd == 3:
        more = -x.shape[1] % strides[0]
        x = jnp.pad(x, ((0, 0), (0, more), *((0, 0),) * 3), "edge")
    return ops.avg_pool(x, strides, strides, ((0, 0),) * nd)


class DenseLayer(nn.Module):
    """Layer of a dense block: norm, 1x1 convolution, norm, convolution; adds to its input.

    Attributes:
      growth: channels that it adds.
      depth: its stage's ways along depth.
      norm, padding, eps, dtype, ops_mode: see `DenseNet`.
    """

    growth: int
    depth: Depth
    norm: str
    padding: str
    eps: float
    dtype: Any
    ops_mode: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        shared = {"dtype": self.dtype, "ops_mode": self.ops_mode}
        for i, (width, window) in enumerate(((BOTTLENECK * self.growth, 1), (self.growth, 3)), 1):
            norm = Norm(self.norm, "relu", self.eps, dtype=self.dtype, name=f"norm{i}")
            conv = Conv(width, window, 1, self.padding, depth=self.depth, name=f"conv{i}", **shared)
            x = conv(norm(x, train=train))
        return x


class DenseNet(EncoderModule, kw_only=True):
    """The convolutional body of a DenseNet.

    `__call__(x (b, *spatial, c))` returns five features `(b, *spatial / reduction, channels)`,
    finest first: the stem's, what each transition gets, and the last, all normed and activated.

    Attributes:
      variant: a key of `ROWS`.
      norm, padding, eps, dtype, ops_mode: see `EncoderModule`.
      drop_path_rate: of no use here: there are no residual branches.
      depth_kernels, depth_strides, depth_padding: see `EncoderModule`. The stem's maxima and the
        transitions' means look along depth only where that is strided. Means are of whole windows
        in the plane; along depth also of the last part of one.
      factorised: must be False: there are no depthwise convolutions.
    """

    variant: str = "121"

    def strides(self) -> Strides:
        """See `EncoderModule.strides`."""
        return strides(self.variant)

    def depths(self) -> tuple[Depth, ...]:
        """Depth options of the stem, then of each stage.

        Raises:
          ValueError: as `Strides.depths` says, or factorised kernels are asked for.
        """
        if self.factorised:
            raise ValueError(
                f"factorised=True: densenet{self.variant} has no depthwise kernels to factorise"
            )
        return super().depths()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        row = lookup("variant", self.variant, ROWS)
        depth, *stage_depths = self.depths()
        shared = {"dtype": self.dtype, "ops_mode": self.ops_mode}

        def norm(name, x):
            module = Norm(self.norm, "relu", self.eps, dtype=self.dtype, name=name)
            return module(x, train=train)

        x = Conv(row.stem, 7, 2, self.padding, depth=depth, name="conv0", **shared)(x)
        x = norm("norm0", x)
        features = [x]
        for s, (layers, depth) in enumerate(zip(row.layers, stage_depths, strict=True)):
            if s == 0:
                x = max_pool(x, 3, 2, self.padding, depth, self.ops_mode)
            else:
                x = Conv(x.shape[-1] // 2, 1, name=f"stages_{s}_transition_conv", **shared)(x)
                x = mean_pool(x, depth)
            for i in range(1, layers + 1):
                layer = DenseLayer(
                    row.growth,
                    depth.unstrided(),
                    self.norm,
                    self.padding,
                    self.eps,
                    **shared,
                    name=f"stages_{s}_denselayer{i}",
                )
                x = jnp.concatenate([x, layer(x, train=train)], -1)
            last = s + 1 == len(row.layers)
            x = norm("norm5" if last else f"stages_{s + 1}_transition_norm", x)
            features.append(x)
        return features


def encoder(variant: str) -> Encoder:
    """Row of a variant, a key of `ROWS`."""
    return Encoder(
        family="densenet",
        build=functools.partial(DenseNet, variant=variant),
        stem="conv0/kernel",
        norm="batch",
        info=functools.partial(feature_info, variant),
        strides=functools.partial(strides, variant),
        stage=r"(stages_(\d+))_",
    )


ENCODERS = {f"densenet{variant}": encoder(variant) for variant in ROWS}
