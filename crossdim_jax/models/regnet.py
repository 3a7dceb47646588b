"""RegNet X and Y as encoders. Reference: Radosavovic et al. 2020.

A network is a few numbers: block j would have `initial + slope * j` channels, which are rounded to
`initial` times a power of `factor` and to a multiple of 8; blocks of equal channels are a stage.
"""

import collections
import functools
import math
from typing import NamedTuple

from crossdim_jax.models import residual
from crossdim_jax.models.efficientnet_table import round_channels
from crossdim_jax.models.residual import Block, Network

STEM, QUANTUM = 32, 8


class Row(NamedTuple):
    """One network.

    Attributes:
      slope, initial, factor: of the channels, see the module.
      group: channels of each group of the 3x3 convolutions.
      blocks: how many there are.
      gated: whether blocks have squeeze-and-excitation to a quarter of their input's channels (Y).
      floor: fraction of the channels below which rounding to whole groups may not go; None: it goes
        to the nearest. Where it matters torchvision's networks differ from the paper's.
      resolution: pixels of the square images that the classifier is trained on.
    """

    slope: float
    initial: int
    factor: float
    group: int
    blocks: int
    gated: bool = False
    floor: float | None = None
    resolution: int = 224


ROWS = {
    "regnetx_002": Row(36.44, 24, 2.49, 8, 13),
    "regnetx_004": Row(24.48, 24, 2.54, 16, 22),
    "regnetx_004_tv": Row(24.48, 24, 2.54, 16, 22, floor=0.9),
    "regnetx_006": Row(36.97, 48, 2.24, 24, 16),
    "regnetx_008": Row(35.73, 56, 2.28, 16, 16),
    "regnetx_016": Row(34.01, 80, 2.25, 24, 18),
    "regnetx_032": Row(26.31, 88, 2.25, 48, 25),
    "regnetx_040": Row(38.65, 96, 2.43, 40, 23),
    "regnetx_064": Row(60.83, 184, 2.07, 56, 17),
    "regnetx_080": Row(49.56, 80, 2.88, 120, 23),
    "regnetx_120": Row(73.36, 168, 2.37, 112, 19),
    "regnetx_160": Row(55.59, 216, 2.1, 128, 22),
    "regnetx_320": Row(69.86, 320, 2.0, 168, 23),
    "regnety_002": Row(36.44, 24, 2.49, 8, 13, True),
    "regnety_004": Row(27.89, 48, 2.09, 8, 16, True),
    "regnety_006": Row(32.54, 48, 2.32, 16, 15, True),
    "regnety_008": Row(38.84, 56, 2.4, 16, 14, True),
    "regnety_008_tv": Row(38.84, 56, 2.4, 16, 14, True, 0.9),
    "regnety_016": Row(20.71, 48, 2.65, 24, 27, True),
    "regnety_032": Row(42.63, 80, 2.66, 24, 21, True),
    "regnety_040": Row(31.41, 96, 2.24, 64, 22, True),
    "regnety_064": Row(33.22, 112, 2.27, 72, 25, True),
    "regnety_080": Row(76.82, 192, 2.19, 56, 17, True),
    "regnety_080_tv": Row(76.82, 192, 2.19, 56, 17, True, 0.9),
    "regnety_120": Row(73.36, 168, 2.37, 112, 19, True),
    "regnety_160": Row(106.23, 200, 2.48, 112, 18, True),
    "regnety_320": Row(115.89, 232, 2.53, 232, 20, True),
    "regnety_640": Row(147.48, 352, 2.4, 328, 20, True, resolution=384),
    "regnety_1280": Row(160.83, 456, 2.52, 264, 27, True, resolution=384),
    "regnety_2560": Row(230.83, 640, 2.53, 373, 27, True, resolution=384),
}


def widths(row: Row) -> list[tuple[int, int]]:
    """Channels of each stage before they are rounded to whole groups, and its number of blocks."""
    found = []
    for j in range(row.blocks):
        power = round(math.log(1 + row.slope * j / row.initial) / math.log(row.factor))
        found.append(round(row.initial * row.factor**power / QUANTUM) * QUANTUM)
    return sorted(collections.Counter(found).items())


@functools.cache
def network(name: str) -> Network:
    """The blocks of a row of `ROWS`."""
    row, channels, stages = ROWS[name], STEM, []
    for wanted, repeats in widths(row):
        group = min(row.group, wanted)
        if row.floor is None:
            out = round(wanted / group) * group
        else:
            out = round_channels(wanted, divisor=group, floor=row.floor)
        blocks = []
        for i in range(repeats):
            block = Block(
                "bottleneck",
                out,
                out,
                stride=1 if i else 2,
                shortcut=not i,
                group=group,
                reduced=round(channels / 4) if row.gated else 0,
            )
            blocks.append(block)
            channels = out
        stages.append(tuple(blocks))
    return Network(STEM, 3, False, tuple(stages), row.resolution)


ENCODERS = {
    name: residual.encoder("regnet", name, functools.partial(network, name)) for name in ROWS
}
