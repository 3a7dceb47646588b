"""MobileNetV3 as an encoder, 2D or 3D: EfficientNet's blocks with hard gates and activations.

Parameter names follow timm. Reference: Howard et al. 2019, Tables 1 and 2.
"""

import functools

from crossdim_jax.models import efficientnet
from crossdim_jax.models.efficientnet_table import Block, Network, features, round_channels
from crossdim_jax.models.family import Encoder

STEM = 16
# Each stage's blocks: window, stride, expanded channels, channels, gate, activation. The first
# block expands nothing; the last stage is a 1x1 convolution.
RELU, HARD = "relu", "hard_swish"
ROWS = {
    "large_100": (
        [(3, 1, 16, 16, False, RELU)],
        [(3, 2, 64, 24, False, RELU), (3, 1, 72, 24, False, RELU)],
        [(5, 2, 72, 40, True, RELU), *[(5, 1, 120, 40, True, RELU)] * 2],
        [
            *((3, 2, 240, 80, False, HARD), (3, 1, 200, 80, False, HARD)),
            *[(3, 1, 184, 80, False, HARD)] * 2,
        ],
        [(3, 1, 480, 112, True, HARD), (3, 1, 672, 112, True, HARD)],
        [(5, 2, 672, 160, True, HARD), *[(5, 1, 960, 160, True, HARD)] * 2],
        [(1, 1, 960, 960, False, HARD)],
    ),
    "small_100": (
        [(3, 2, 16, 16, True, RELU)],
        [(3, 2, 72, 24, False, RELU), (3, 1, 88, 24, False, RELU)],
        [(5, 2, 96, 40, True, HARD), *[(5, 1, 240, 40, True, HARD)] * 2],
        [(5, 1, 120, 48, True, HARD), (5, 1, 144, 48, True, HARD)],
        [(5, 2, 288, 96, True, HARD), *[(5, 1, 576, 96, True, HARD)] * 2],
        [(1, 1, 576, 576, False, HARD)],
    ),
}
HEADS = {"large_100": 1280, "small_100": 1024}  # channels before the classifier


@functools.cache
def network(variant: str) -> Network:
    """The blocks of a variant of `ROWS`."""
    channels, stages = STEM, []
    for s, rows in enumerate(ROWS[variant]):
        kind = "separable" if s == 0 else "plain" if s == len(ROWS[variant]) - 1 else "inverted"
        blocks = []
        for window, stride, expanded, out, gated, activation in rows:
            block = Block(
                kind=kind,
                window=window,
                stride=stride,
                expanded=expanded,
                channels=out,
                reduced=round_channels(expanded / 4) if gated else 0,
                skip=stride == 1 and out == channels,
                activation=activation,
                group=1,
                experts=0,
                blur=False,
                fold=False,
                gate="hard_sigmoid",
                gate_activation=RELU,
            )
            blocks.append(block)
            channels = out
        stages.append(tuple(blocks))
    return Network(
        stem=STEM,
        stages=tuple(stages),
        features=features(stages),
        head=HEADS[variant],
        activation=HARD,
        norm="batch",
        norm_group=8,
        resolution=224,
    )


class MobileNetV3(efficientnet.EfficientNet, kw_only=True):
    """The convolutional body of a MobileNetV3; attributes and features as `EfficientNet`'s.

    Attributes:
      variant: a key of `ROWS`.
    """

    variant: str = "large_100"

    def network(self) -> Network:
        """The blocks that it is made of."""
        return network(self.variant)


def encoder(variant: str) -> Encoder:
    """Row of a variant, a key of `ROWS`."""
    return efficientnet.relative("mobilenetv3", MobileNetV3, variant, network(variant))


ENCODERS = {f"mobilenetv3_{variant}": encoder(variant) for variant in ROWS}
