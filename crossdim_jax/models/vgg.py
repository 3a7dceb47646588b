"""VGG with and without batch norm as encoders. Reference: Simonyan and Zisserman 2015.

Its features begin at the image's own resolution.
"""

import functools

import flax.linen as nn
import jax

from crossdim_jax.models.conv import Conv, Depth
from crossdim_jax.models.depth import Strides
from crossdim_jax.models.family import NONE, Encoder, EncoderModule, Feature
from crossdim_jax.models.layers import Norm, max_pool
from crossdim_jax.ops import ACTIVATIONS

CHANNELS = (64, 128, 256, 512, 512)  # of the stages
# Convolutions of each stage. Stage 5 is a pooling alone.
ROWS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
IN_PLANE = (1, 1, 2, 2, 2, 2, 2)  # strides of the first convolution, then of the stages' poolings


def strides(name: str) -> Strides:
    """Strides of the first convolution and of each stage."""
    return Strides(name, IN_PLANE, (3,) * len(IN_PLANE), tuple(range(1, len(IN_PLANE))))


def feature_info(variant: str) -> tuple[Feature, ...]:
    """Channels and reduction in the plane of the six features, finest first."""
    return tuple(map(Feature, (*CHANNELS, CHANNELS[-1]), strides(variant).reductions()))


def parameters(variant: str, *, normalised: bool, in_channels: int = 3) -> int:
    """Parameters of a 2D encoder."""
    total, c = 0, in_channels
    for channels, count in zip(CHANNELS, ROWS[variant], strict=True):
        for _ in range(count):
            total += (9 * c + (3 if normalised else 1)) * channels
            c = channels
    return total


class VGG(EncoderModule, kw_only=True):
    """The convolutional body of a VGG.

    `__call__(x (b, *spatial, c))` returns six features `(b, *spatial / reduction, channels)`,
    finest first, at /1 to /32: each stage's output before the next one's pooling, and the last
    pooling's. There is no residual branch to be dropped, and no norm unless it is `normalised`.

    The depth options are for volumes; a 2D network ignores them. An entry for each stage means a
    tuple of seven: the first convolution's, then one for each stage, which begins with a pooling
    but for stage 0. Along depth poolings take no more voxels than `depth_kernels` says, and one
    where they have no stride.

    Attributes:
      variant: a key of `ROWS`.
      normalised: whether a norm follows each convolution.
      norm, padding, eps, drop_path_rate, depth_kernels, depth_strides, depth_padding, factorised,
        dtype, ops_mode: see `encoders.EncoderSpec`.
    """

    variant: str = "vgg16"
    normalised: bool = False

    def strides(self) -> Strides:
        """See `EncoderModule.strides`."""
        return strides(self.variant)

    def depths(self) -> tuple[Depth, ...]:
        """Depth options of the first convolution, then of each stage.

        Raises:
          ValueError: they do not fit, see `Strides.depths`, or are to be factorised, for which
            there is no grouped convolution.
        """
        if self.factorised:
            raise ValueError(
                f"{self.variant!r} has no grouped convolution that could be factorised"
            )
        return super().depths()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> list[jax.Array]:
        first, *stage_depths = self.depths()
        counts, features = (*ROWS[self.variant], 0), []
        for s, (count, depth) in enumerate(zip(counts, stage_depths, strict=True)):
            if s > 0:
                x = max_pool(x, 2, 2, "none", depth, self.ops_mode)
            for i in range(count):
                name, depth = f"stages_{s}_{i}", first if s == i == 0 else depth.unstrided()
                x = self._conv(x, name, CHANNELS[s], depth, train)
            features.append(x)
        return features

    def _conv(self, x, name, channels, depth, train):
        """Convolution, norm if there is one, ReLU."""
        x = Conv(
            channels,
            3,
            padding=self.padding,
            use_bias=True,
            depth=depth,
            dtype=self.dtype,
            ops_mode=self.ops_mode,
            name=name,
        )(x)
        if not self.normalised:
            return ACTIVATIONS["relu"](x)
        norm = Norm(self.norm, "relu", self.eps, dtype=self.dtype, name=f"{name}_norm")
        return norm(x, train=train)


def encoder(variant: str, normalised: bool) -> Encoder:
    """Row of a variant, a key of `ROWS`; a network is named as its encoder."""
    return Encoder(
        family=f"{variant}_bn" if normalised else variant,  # each reads its own names of layers
        build=functools.partial(VGG, variant=variant, normalised=normalised),
        stem="stages_0_0/kernel",
        norm="batch" if normalised else NONE,
        info=functools.partial(feature_info, variant),
        strides=functools.partial(strides, variant),
        # The first convolution is the stem.
        stage=r"(?!stages_0_0(?:_norm)?/)(stages_(\d+))_\d+(?:_norm)?/",
    )


ENCODERS = {
    f"{variant}{'_bn' if normalised else ''}": encoder(variant, normalised)
    for variant in ROWS
    for normalised in (False, True)
}
