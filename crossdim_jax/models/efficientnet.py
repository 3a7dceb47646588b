"""EfficientNet as an encoder, 2D or 3D from one body of code.

Reference: Tan and Le 2019; parameter names follow timm, so that porting weights is renaming.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.models.layers import Conv, DropPath, Norm, SqueezeExcite


class Feature(NamedTuple):
    """What a decoder may know of one encoder output."""

    channels: int
    reduction: int


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of the B0 block table."""

    window: int
    stride: int
    expansion: int  # 1: depthwise-separable block; otherwise inverted residual
    channels: int
    repeats: int


B0_STEM = 32
B0_STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
FEATURE_STAGES = (1, 2, 4, 6)  # outputs at /4, /8, /16, /32; the stem gives /2


class Scaling(NamedTuple):
    """Compound scaling of B0, and the 2D resolution (pixels) the classifier was trained at."""

    width: float
    depth: float
    resolution: int


SCALING = {
    "b0": Scaling(1.0, 1.0, 224),
    "b1": Scaling(1.0, 1.1, 240),
    "b2": Scaling(1.1, 1.2, 260),
    "b3": Scaling(1.2, 1.4, 300),
    "b4": Scaling(1.4, 1.8, 380),
    "b5": Scaling(1.6, 2.2, 456),
    "b6": Scaling(1.8, 2.6, 528),
    "b7": Scaling(2.0, 3.1, 600),
    "b8": Scaling(2.2, 3.6, 672),
    "l2": Scaling(4.3, 5.3, 800),
}


def round_channels(channels: float, *, divisor: int = 8, floor: float = 0.9) -> int:
    """The nearest multiple of `divisor`, never below `floor` times the wish (Tan and Le 2019)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= floor * channels else rounded + divisor


def scaled(variant: str) -> tuple[int, tuple[Stage, ...]]:
    """Stem channels and stages of a variant of `SCALING`; an unknown one is a ValueError."""
    if variant not in SCALING:
        raise ValueError(f"EfficientNet {variant!r} is unknown; known: {', '.join(SCALING)}")
    width, depth, _ = SCALING[variant]
    stages = tuple(
        dataclasses.replace(
            stage,
            channels=round_channels(stage.channels * width),
            repeats=math.ceil(stage.repeats * depth),
        )
        for stage in B0_STAGES
    )
    return round_channels(B0_STEM * width), stages


def feature_info(variant: str) -> tuple[Feature, ...]:
    """Channels and reduction of the five features of a variant, finest first."""
    stem, stages = scaled(variant)
    channels = (stem, *(stages[i].channels for i in FEATURE_STAGES))
    return tuple(Feature(c, 2 ** (i + 1)) for i, c in enumerate(channels))


class Block(nn.Module):
    """Depthwise-separable (expansion 1) or inverted residual block with squeeze-and-excitation."""

    stage: Stage
    stride: int
    drop_path_rate: float
    norm: str
    padding: str
    eps: float
    dtype: Any
    ops_mode: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        def conv(name, features, window=1, stride=1, depthwise=False):
            return Conv(
                features,
                window,
                stride,
                self.padding,
                depthwise=depthwise,
                dtype=self.dtype,
                ops_mode=self.ops_mode,
                name=name,
            )

        def norm(name, activation, y):
            module = Norm(self.norm, activation, self.eps, dtype=self.dtype, name=name)
            return module(y, train=train)

        stage, c_in = self.stage, x.shape[-1]
        separable = stage.expansion == 1
        y = x
        if not separable:
            y = norm("bn1", "silu", conv("conv_pw", c_in * stage.expansion)(y))
        y = conv("conv_dw", y.shape[-1], stage.window, self.stride, depthwise=True)(y)
        y = norm("bn1" if separable else "bn2", "silu", y)
        # A quarter of the block's own input, not of the expanded channels.
        y = SqueezeExcite(c_in // 4, self.dtype, name="se")(y)
        y = conv("conv_pw" if separable else "conv_pwl", stage.channels)(y)
        y = norm("bn2" if separable else "bn3", None, y)
        if self.stride == 1 and c_in == stage.channels:
            y = x + DropPath(self.drop_path_rate, name="drop_path")(y, train=train)
        return y


class EfficientNet(nn.Module):
    """The convolutional body of an EfficientNet.

    `__call__(x (b, *spatial, c))` returns five features `(b, *spatial / reduction, channels)`,
    finest first, as `feature_info` says: the stem's activated output /2, then stages 1 /4, 2 /8,
    4 /16 and 6 /32.

    Attributes:
      variant: a key of `SCALING`.
      norm: "batch", "instance" or "group".
      padding: "same" for TensorFlow-trained weights, "symmetric" for PyTorch-trained ones; the two
        are not interchangeable at stride 2.
      eps: of the norms; 1e-3 for TensorFlow-trained weights, 1e-5 for PyTorch-trained ones.
      drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
      dtype: compute dtype; parameters are float32.
      ops_mode: "auto", "lax" or "fast", see `ops.choose`.
    """

    variant: str = "b0"
    norm: str = "batch"
    padding: str = "same"
    eps: float = 1e-3
    drop_path_rate: float = 0.2
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        stem, stages = scaled(self.variant)
        x = Conv(
            stem, 3, 2, self.padding, dtype=self.dtype, ops_mode=self.ops_mode, name="conv_stem"
        )(x)
        x = Norm(self.norm, "silu", self.eps, dtype=self.dtype, name="bn1")(x, train=train)
        features, index = [x], 0
        total = sum(stage.repeats for stage in stages)
        for s, stage in enumerate(stages):
            for i in range(stage.repeats):
                x = Block(
                    stage,
                    stage.stride if i == 0 else 1,
                    self.drop_path_rate * index / total,
                    self.norm,
                    self.padding,
                    self.eps,
                    self.dtype,
                    self.ops_mode,
                    name=f"blocks_{s}_{i}",
                )(x, train=train)
                index += 1
            if s in FEATURE_STAGES:
                features.append(x)
        return features
