"""The encoders a network can be built on.

A network asks its encoder for its features, by calling it, and before that for their channels and
reductions. Adding an encoder is adding a file and a row to `ENCODERS`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from crossdim_jax.errors import check_name
from crossdim_jax.models import efficientnet, efficientnet_table


class Encoder(NamedTuple):
    """A row of `ENCODERS`.

    Attributes:
      build: makes the module; its method `depths()` raises ValueError if its depth options do not
        fit it.
      stem: path of its first kernel, (*k, in, out); its shape tells the rank and the input
        channels, and porting adapts it to them.
      norm: the norm that its weights are made for, "batch" or "group".
      info: gives its `Feature`s.
      depth_reductions: `depth_strides` -> by how much each feature is reduced along depth.
    """

    build: Callable[..., nn.Module]
    stem: str
    norm: str
    info: Callable[[], tuple[efficientnet.Feature, ...]]
    depth_reductions: Callable[..., tuple[int, ...]]


ENCODERS: dict[str, Encoder] = {
    architecture: Encoder(
        functools.partial(efficientnet.EfficientNet, variant=variant),
        "conv_stem/kernel",
        efficientnet_table.ROWS[variant].norm,
        functools.partial(efficientnet.feature_info, variant),
        functools.partial(efficientnet.depth_reductions, variant),
    )
    for architecture, variant in efficientnet_table.VARIANTS.items()
}


def check(encoder: str) -> None:
    """Raises ValueError, listing the known encoders, unless this is one."""
    check_name("encoder", encoder, ENCODERS)


def build(encoder: str, /, **kwargs: Any) -> nn.Module:
    """The encoder module of that name; an unknown name is a ValueError listing the known ones."""
    check(encoder)
    return ENCODERS[encoder].build(**kwargs)


def stem(encoder: str) -> str:
    """The path of its first kernel within the encoder; an unknown name is a ValueError."""
    check(encoder)
    return ENCODERS[encoder].stem


def norm(encoder: str) -> str:
    """The norm that its weights are made for; an unknown name is a ValueError."""
    check(encoder)
    return ENCODERS[encoder].norm


def feature_info(encoder: str) -> tuple[efficientnet.Feature, ...]:
    """Channels and reduction of its features, finest first; an unknown name is a ValueError."""
    check(encoder)
    return ENCODERS[encoder].info()


def depth_reductions(encoder: str, strides: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """By how much each feature is reduced along depth with those `depth_strides`.

    Raises:
      ValueError: the name is unknown, or the strides do not fit it.
    """
    check(encoder)
    return ENCODERS[encoder].depth_reductions(strides)
