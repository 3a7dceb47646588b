"""The EfficientNets, one row each: block tables, compound scaling, and the blocks they give.

`ROWS` says in a few words what `network` spells out block by block. References: Tan and Le 2019
(B0 to B8), Xie et al. 2020 (L2), Gupta and Akin 2019 (edge), Yang et al. 2019 (conditional
convolutions), Tan and Le 2021 (V2), Li et al. 2021 (x), Aflalo et al. 2020 (pruned).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from crossdim_jax.errors import check_name
from crossdim_jax.models.efficientnet_pruned import PRUNED


@dataclasses.dataclass(frozen=True)
class Stage:
    """One row of a block table, before scaling.

    Attributes:
      kind: of its blocks:
        "separable"  depthwise, then 1x1; no residual expansion
        "inverted"   1x1 expansion, depthwise, 1x1
        "fused"      expansion with the full window, 1x1
        "plain"      one convolution
      window, stride: of the windowed convolution; only the first block has the stride.
      expansion: expanded channels per input channel.
      channels, repeats: of its outputs and blocks.
      gate: whether blocks have squeeze-and-excitation.
      skip: whether blocks that keep their shape are residual.
      experts: kernels that a conditional convolution mixes; 0: ordinary convolutions.
      activation: None: the network's.
      expand_from: the expansion counts from that many channels (scaled), not from the input's.
    """

    kind: str
    window: int
    stride: int
    expansion: int
    channels: int
    repeats: int
    gate: bool = True
    skip: bool = True
    experts: int = 0
    activation: str | None = None
    expand_from: int = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One network: a block table and what is done to it.

    Attributes:
      stages: the block table.
      resolution: pixels of the square images that the classifier is trained on.
      width, depth: multipliers of channels and repeats; depth may be one per stage.
      stem, head: channels of the first convolution and before the classifier, unscaled.
      activation: a key of `ops.ACTIVATIONS`.
      scale_ends: whether stem, head, and the repeats of the first and last stage are scaled.
      divisor, floor: see `round_channels`.
      norm: the norm it is made for, "batch" or "group".
      norm_group: channels of a group of "group".
      conv_group: channels of a group of the depthwise convolutions; 1: truly depthwise.
      experts: multiplier of `Stage.experts`.
      blur: whether strides are a binomial blur after a convolution with stride 1.
      space_to_depth: whether the first stage works at /4 with four times the channels.
      pruned: a key of `PRUNED`, whose channels replace the regular ones.
    """

    stages: tuple[Stage, ...]
    resolution: int
    width: float = 1.0
    depth: float | tuple[float, ...] = 1.0
    stem: int = 32
    head: int = 1280
    activation: str = "silu"
    scale_ends: bool = True
    divisor: int = 8
    floor: float = 0.9
    norm: str = "batch"
    norm_group: int = 8
    conv_group: int = 1
    experts: int = 1
    blur: bool = False
    space_to_depth: bool = False
    pruned: str | None = None


class Block(NamedTuple):
    """One block, nothing left to work out.

    Attributes:
      kind, window, stride: as in `Stage`; the stride is this block's own.
      expanded: channels between its first and its last convolution.
      channels: of its output.
      reduced: channels within squeeze-and-excitation; 0: there is none.
      skip: whether it is residual.
      activation: of its norms and of squeeze-and-excitation.
      group: input channels per group of its depthwise convolution.
      experts: see `Stage`.
      blur: whether its stride is a blur.
      fold: whether a 2x2 convolution with its stride goes before it, to `expanded` channels.
      gate, gate_activation: of squeeze-and-excitation, see `layers.SqueezeExcite`; None: the
        block's activation.
    """

    kind: str
    window: int
    stride: int
    expanded: int
    channels: int
    reduced: int
    skip: bool
    activation: str
    group: int
    experts: int
    blur: bool
    fold: bool
    gate: str = "sigmoid"
    gate_activation: str | None = None


class Network(NamedTuple):
    """A row, block by block.

    Attributes:
      stem: channels of the first convolution (window 3, stride 2).
      stages: their blocks.
      features: the stages whose output is handed on, at /4, /8, /16 and /32; the stem gives /2.
      head: channels before the classifier.
      activation, norm, norm_group, resolution: as in `Row`.
    """

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    features: tuple[int, ...]
    head: int
    activation: str
    norm: str
    norm_group: int
    resolution: int


def _without_gates(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    return tuple(dataclasses.replace(stage, gate=False) for stage in stages)


def _with(stages: tuple[Stage, ...], index: int, **changes) -> tuple[Stage, ...]:
    return tuple(
        dataclasses.replace(s, **changes) if i == index % len(stages) else s
        for i, s in enumerate(stages)
    )


B0_STAGES = (
    Stage("separable", 3, 1, 1, 16, 1),
    Stage("inverted", 3, 2, 6, 24, 2),
    Stage("inverted", 5, 2, 6, 40, 2),
    Stage("inverted", 3, 2, 6, 80, 3),
    Stage("inverted", 5, 1, 6, 112, 3),
    Stage("inverted", 5, 2, 6, 192, 4),
    Stage("inverted", 3, 1, 6, 320, 1),
)
LITE_STAGES = _without_gates(B0_STAGES)
CONDITIONAL_STAGES = (*B0_STAGES[:4], *(dataclasses.replace(s, experts=4) for s in B0_STAGES[4:]))
EDGE_STAGES = _without_gates(
    (
        Stage("fused", 3, 1, 4, 24, 1, skip=False, expand_from=24),
        Stage("fused", 3, 2, 8, 32, 2),
        Stage("fused", 3, 2, 8, 48, 4),
        Stage("inverted", 5, 2, 8, 96, 5),
        Stage("inverted", 5, 1, 8, 144, 4),
        Stage("inverted", 5, 2, 8, 192, 2),
    )
)
X_STAGES = (
    B0_STAGES[0],
    Stage("fused", 3, 2, 6, 24, 2, activation="relu"),
    Stage("fused", 5, 2, 6, 40, 2, activation="relu"),
    *B0_STAGES[3:],
)
H_STAGES = (
    B0_STAGES[0],
    *(dataclasses.replace(s, expansion=4) for s in X_STAGES[1:4]),
    *B0_STAGES[4:],
)


def _v2(*ends: tuple[int, int], expansions: tuple[int, ...] = (1, 4, 4, 4, 6, 6, 6)):
    """The stages of a V2: the kinds and strides are the same in all, (channels, repeats) differ."""
    kinds = ("plain", "fused", "fused", "inverted", "inverted", "inverted", "inverted")
    strides = (1, 2, 2, 2, 1, 2, 1)
    return tuple(
        Stage(kind, 3, stride, expansion, channels, repeats, gate=kind == "inverted")
        for kind, stride, expansion, (channels, repeats) in zip(
            kinds, strides, expansions, ends, strict=False
        )
    )


V2_BASE = _v2((16, 1), (32, 2), (48, 2), (96, 3), (112, 5), (192, 8))
V2_S = _v2((24, 2), (48, 4), (64, 4), (128, 6), (160, 9), (256, 15))
V2_M = _v2((24, 3), (48, 5), (80, 5), (160, 7), (176, 14), (304, 18), (512, 5))
V2_L = _v2((32, 4), (64, 7), (96, 7), (192, 10), (224, 19), (384, 25), (640, 7))
V2_XL = _v2((32, 4), (64, 8), (96, 8), (192, 16), (256, 24), (512, 32), (640, 8))
V2_RW = _with(_with(V2_S, 0, kind="fused"), -1, channels=272)  # from before the official release


def _lite(resolution: int, width: float, depth: float) -> Row:
    return Row(LITE_STAGES, resolution, width, depth, activation="relu6", scale_ends=False)


_v2_base = functools.partial(Row, V2_BASE, floor=0.0)
_edge = functools.partial(Row, EDGE_STAGES, activation="relu")
_grouped_b3 = functools.partial(
    Row, B0_STAGES, 288, 1.2, 1.4, divisor=16, norm="group", norm_group=16
)
_ES, _EL = _edge(224), _edge(300, 1.2, 1.4)

ROWS: dict[str, Row] = {
    "b0": Row(B0_STAGES, 224, 1.0, 1.0),
    "b1": Row(B0_STAGES, 240, 1.0, 1.1),
    "b2": Row(B0_STAGES, 260, 1.1, 1.2),
    "b3": Row(B0_STAGES, 300, 1.2, 1.4),
    "b4": Row(B0_STAGES, 380, 1.4, 1.8),
    "b5": Row(B0_STAGES, 456, 1.6, 2.2),
    "b6": Row(B0_STAGES, 528, 1.8, 2.6),
    "b7": Row(B0_STAGES, 600, 2.0, 3.1),
    "b8": Row(B0_STAGES, 672, 2.2, 3.6),
    "l2": Row(B0_STAGES, 800, 4.3, 5.3),
    "lite0": _lite(224, 1.0, 1.0),
    "lite1": _lite(240, 1.0, 1.1),
    "lite2": _lite(260, 1.1, 1.2),
    "lite3": _lite(300, 1.2, 1.4),
    "lite4": _lite(380, 1.4, 1.8),
    "es": _ES,
    "em": _edge(240, 1.0, 1.1),
    "el": _EL,
    # These two were pruned by setting weights to zero: their tensors keep their shapes.
    "es_pruned": _ES,
    "el_pruned": _EL,
    "b1_pruned": Row(B0_STAGES, 240, 1.0, 1.1, pruned="b1"),
    "b2_pruned": Row(B0_STAGES, 260, 1.1, 1.2, pruned="b2"),
    "b3_pruned": Row(B0_STAGES, 300, 1.2, 1.4, pruned="b3"),
    "cc_b0_4e": Row(CONDITIONAL_STAGES, 224),
    "cc_b0_8e": Row(CONDITIONAL_STAGES, 224, experts=2),
    "cc_b1_8e": Row(CONDITIONAL_STAGES, 240, 1.0, 1.1, experts=2),
    "blur_b0": Row(B0_STAGES, 224, blur=True),
    "b0_gn": Row(B0_STAGES, 224, norm="group"),
    "b0_g8_gn": Row(B0_STAGES, 224, norm="group", conv_group=8),
    # Named after EvoNorm, which it was meant to have; timm builds it with BatchNorm.
    "b0_g16_evos": Row(B0_STAGES, 224, divisor=16, conv_group=16),
    "b3_gn": _grouped_b3(),
    "b3_g8_gn": _grouped_b3(conv_group=8),
    "x_b3": Row(X_STAGES, 288, 1.2, 1.4, space_to_depth=True),
    "x_b5": Row(X_STAGES, 448, 1.6, 2.2, space_to_depth=True),
    "h_b5": Row(H_STAGES, 448, 1.92, 2.2, space_to_depth=True),
    "v2_b0": _v2_base(192, 1.0, 1.0),
    "v2_b1": _v2_base(192, 1.0, 1.1),
    "v2_b2": _v2_base(208, 1.1, 1.2),
    "v2_b3": _v2_base(240, 1.2, 1.4),
    "v2_s": Row(V2_S, 300, stem=24),
    "v2_m": Row(V2_M, 384, stem=24),
    "v2_l": Row(V2_L, 384),
    "v2_xl": Row(V2_XL, 384),
    "v2_rw_t": Row(V2_S, 224, 0.8, 0.9, stem=24),
    "v2_rw_s": Row(V2_RW, 288, stem=24, head=1792),
    "v2_rw_m": Row(V2_RW, 320, 1.2, (1.2,) * 4 + (1.6,) * 2, stem=24, head=1792),
}

# "efficientnet_b0" -> "b0", "efficientnetv2_s" -> "v2_s".
VARIANTS = {f"efficientnet{'' if v.startswith('v2_') else '_'}{v}": v for v in ROWS}


def check(variant: str) -> None:
    """Raises ValueError, listing the known variants, unless this is one."""
    check_name("variant", variant, ROWS)


def round_channels(channels: float, *, divisor: int = 8, floor: float = 0.9) -> int:
    """The nearest multiple of `divisor`, never below `floor` times the wish (Tan and Le 2019)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= floor * channels else rounded + divisor


def scaled(variant: str) -> tuple[int, tuple[Stage, ...]]:
    """Stem channels and scaled stages of a variant of `ROWS`; an unknown one is a ValueError."""
    check(variant)
    row = ROWS[variant]
    last = len(row.stages) - 1
    depths = row.depth if isinstance(row.depth, tuple) else (row.depth,) * (last + 1)
    stages = tuple(
        dataclasses.replace(
            stage,
            channels=_width(row, stage.channels),
            expand_from=stage.expand_from and _width(row, stage.expand_from),
            repeats=math.ceil(stage.repeats * (depth if row.scale_ends or 0 < i < last else 1)),
            experts=stage.experts * row.experts,
        )
        for i, (stage, depth) in enumerate(zip(row.stages, depths, strict=True))
    )
    return (_width(row, row.stem) if row.scale_ends else row.stem), stages


def _width(row: Row, channels: int) -> int:
    return round_channels(channels * row.width, divisor=row.divisor, floor=row.floor)


@functools.cache
def network(variant: str) -> Network:
    """The blocks of a variant of `ROWS`; an unknown one is a ValueError."""
    stem, stages = scaled(variant)
    row, channels, built = ROWS[variant], stem, []
    for s, stage in enumerate(stages):
        blocks = []
        for i in range(stage.repeats):
            blocks.append(_block(row, stage, s, i, channels))
            channels = blocks[-1].channels
        built.append(tuple(blocks))
    return Network(
        stem=stem,
        stages=tuple(built),
        features=features(built),
        head=_width(row, row.head) if row.scale_ends else row.head,
        activation=row.activation,
        norm=row.norm,
        norm_group=row.norm_group,
        resolution=row.resolution,
    )


def features(stages: Sequence[Sequence[Block]]) -> tuple[int, ...]:
    """The last stage before each stride, but for those that are still at /2."""
    strides = [blocks[0].stride for blocks in stages]
    ends = [s for s in range(len(strides)) if s + 1 == len(strides) or strides[s + 1] > 1]
    return tuple(s for s in ends if max(strides[: s + 1]) > 1)


def _block(row: Row, stage: Stage, s: int, i: int, c_in: int) -> Block:
    """Block i of stage s, which gets `c_in` channels."""
    stride, expansion, channels = stage.stride if i == 0 else 1, stage.expansion, stage.channels
    window, fold = stage.window, row.space_to_depth and s == 0 and i == 0
    if row.space_to_depth and s == 0:  # /4 and four times the channels, until stage 1 ends that
        channels *= 4
        if fold:
            stride, window = 2, (window + 1) // 2
    elif row.space_to_depth and s == 1 and i == 0:
        stride, expansion = 1, expansion / 4
    if stage.kind == "separable":
        expanded = 4 * c_in if fold else c_in
    else:
        expanded = round_channels((stage.expand_from or c_in) * expansion)
    reduced = c_in // 4  # a quarter of the block's own input, not of the expanded channels
    if row.pruned:
        expanded, reduced, channels = PRUNED[row.pruned][s][i]
    return Block(
        kind=stage.kind,
        window=window,
        stride=stride,
        expanded=expanded,
        channels=channels,
        reduced=reduced if stage.gate else 0,
        skip=stage.skip and stride == 1 and channels == c_in,
        activation=stage.activation or row.activation,
        group=row.conv_group,
        experts=stage.experts,
        blur=row.blur and stride > 1,
        fold=fold,
    )


def parameters(variant: str, in_channels: int = 3) -> int:
    """Parameters of a variant's 2D encoder; counted, as tracing all networks takes a minute."""
    return count(network(variant), in_channels)


def count(net: Network, in_channels: int = 3) -> int:
    """Parameters of a network's 2D encoder."""
    total, c_in = (9 * in_channels + 2) * net.stem, net.stem
    for block in (block for blocks in net.stages for block in blocks):
        area, wide, out, mixed = block.window**2, block.expanded, block.channels, block.experts or 1
        total += (4 * c_in + 2) * wide if block.fold else 0
        if block.kind == "plain":
            total += (area * c_in + 2) * out
        else:
            total += (mixed * c_in + 2) * wide if block.kind == "inverted" else 0
            total += (area * (c_in if block.kind == "fused" else mixed * block.group) + 2) * wide
            total += 2 * wide * block.reduced + (wide + block.reduced if block.reduced else 0)
            total += (mixed * wide + 2) * out + (c_in + 1) * block.experts
        c_in = out
    return total
