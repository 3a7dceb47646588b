"""ResNet, ResNeXt and wide ResNet as encoders.

References: He et al. 2016 (the stride on a bottleneck's first convolution, as Keras has it; on its
3x3 one as in torchvision), Xie et al. 2017 (ResNeXt), Zagoruyko and Komodakis 2016 (wide).
"""

import functools
from typing import NamedTuple

from crossdim_jax.models import residual
from crossdim_jax.models.residual import Block, Network

PLANES = (64, 128, 256, 512)  # of the stages
EXPANSION = 4  # a bottleneck's channels for each of its plane's


class Row(NamedTuple):
    """One network.

    Attributes:
      kind: of its blocks, see `residual.Block`.
      repeats: blocks of each stage.
      groups: of a bottleneck's 3x3 convolution.
      base: channels of each group where the stage has 64 planes.
      keras: whether it is Keras' form, with biases and the stride on the first 1x1 convolution.
    """

    kind: str
    repeats: tuple[int, ...]
    groups: int = 1
    base: int = 64
    keras: bool = False


R50, R101, R152 = (3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)
ROWS = {
    "resnet18": Row("basic", (2, 2, 2, 2)),
    "resnet26": Row("bottleneck", (2, 2, 2, 2)),
    "resnet34": Row("basic", R50),
    "resnet50": Row("bottleneck", R50),
    "resnet101": Row("bottleneck", R101),
    "resnet152": Row("bottleneck", R152),
    "resnet200": Row("bottleneck", (3, 24, 36, 3)),
    "resnext50_32x4d": Row("bottleneck", R50, 32, 4),
    "resnext101_32x4d": Row("bottleneck", R101, 32, 4),
    "resnext101_32x8d": Row("bottleneck", R101, 32, 8),
    "resnext101_32x16d": Row("bottleneck", R101, 32, 16),
    "resnext101_32x32d": Row("bottleneck", R101, 32, 32),
    "resnext101_64x4d": Row("bottleneck", R101, 64, 4),
    "wide_resnet50_2": Row("bottleneck", R50, 1, 128),
    "wide_resnet101_2": Row("bottleneck", R101, 1, 128),
    "resnet50_keras": Row("bottleneck", R50, keras=True),
    "resnet101_keras": Row("bottleneck", R101, keras=True),
    "resnet152_keras": Row("bottleneck", R152, keras=True),
}


def network(name: str) -> Network:
    """The blocks of a row of `ROWS`."""
    row, channels, stages = ROWS[name], PLANES[0], []
    for s, (planes, repeats) in enumerate(zip(PLANES, row.repeats, strict=False)):
        blocks = []
        for i in range(repeats):
            bottleneck = row.kind == "bottleneck"
            width = planes * row.base // 64 * row.groups if bottleneck else planes
            out = planes * EXPANSION if bottleneck else planes
            stride = 2 if i == 0 and s > 0 else 1
            block = Block(
                row.kind,
                out,
                width,
                stride,
                shortcut=stride > 1 or channels != out,
                group=width // row.groups if row.groups > 1 else 0,
                stride_first=row.keras,
                bias=row.keras,
            )
            blocks.append(block)
            channels = out
        stages.append(tuple(blocks))
    return Network(PLANES[0], 7, True, tuple(stages))


ENCODERS = {
    name: residual.encoder("resnet", name, functools.partial(network, name)) for name in ROWS
}
