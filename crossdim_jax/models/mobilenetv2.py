"""MobileNetV2 as an encoder, 2D or 3D: EfficientNet's inverted blocks without gates.

Parameter names follow timm. Reference: Sandler et al. 2018, Table 2.
"""

import functools

from crossdim_jax.models import efficientnet
from crossdim_jax.models.efficientnet_table import Block, Network, features
from crossdim_jax.models.family import Encoder

STEM, HEAD = 32, 1280  # channels of the first convolution and before the classifier
ACTIVATION = "relu6"
# Each stage: expanded channels per input channel, channels, blocks, stride of the first one.
ROWS = {
    "100": (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ),
}


@functools.cache
def network(variant: str) -> Network:
    """The blocks of a variant of `ROWS`."""
    channels, stages = STEM, []
    for expansion, out, repeats, first in ROWS[variant]:
        blocks = []
        for stride in (first, *(1,) * (repeats - 1)):
            block = Block(
                kind="separable" if expansion == 1 else "inverted",
                window=3,
                stride=stride,
                expanded=expansion * channels,
                channels=out,
                reduced=0,
                skip=stride == 1 and out == channels,
                activation=ACTIVATION,
                group=1,
                experts=0,
                blur=False,
                fold=False,
            )
            blocks.append(block)
            channels = out
        stages.append(tuple(blocks))
    return Network(
        stem=STEM,
        stages=tuple(stages),
        features=features(stages),
        head=HEAD,
        activation=ACTIVATION,
        norm="batch",
        norm_group=8,
        resolution=224,
    )


class MobileNetV2(efficientnet.EfficientNet, kw_only=True):
    """The convolutional body of a MobileNetV2; attributes and features as `EfficientNet`'s.

    Attributes:
      variant: a key of `ROWS`.
    """

    variant: str = "100"

    def network(self) -> Network:
        """The blocks that it is made of."""
        return network(self.variant)


def encoder(variant: str) -> Encoder:
    """Row of a variant, a key of `ROWS`."""
    return efficientnet.relative("mobilenetv2", MobileNetV2, variant, network(variant))


ENCODERS = {f"mobilenetv2_{variant}": encoder(variant) for variant in ROWS}
