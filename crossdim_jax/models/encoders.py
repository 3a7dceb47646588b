"""The encoders a network can be built on.

A network asks its encoder for its features, by calling it, and before that for their channels and
reductions. Adding a family of encoders is adding a file and naming it in `FAMILIES`.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from crossdim_jax.models import efficientnet
from crossdim_jax.models.family import Encoder, Feature

FAMILIES = (efficientnet,)
ENCODERS: dict[str, Encoder] = {
    name: row for family in FAMILIES for name, row in family.ENCODERS.items()
}


def row(encoder: str) -> Encoder:
    """Row of that name; an unknown name is a ValueError listing the known ones."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder {encoder!r} is unknown; known: {', '.join(ENCODERS)}")
    return ENCODERS[encoder]


def build(encoder: str, /, **kwargs: Any) -> nn.Module:
    """Encoder module of that name; an unknown name is a ValueError."""
    return row(encoder).build(**kwargs)


def stem(encoder: str) -> str:
    """Path of its first kernel within the encoder; an unknown name is a ValueError."""
    return row(encoder).stem


def norm(encoder: str) -> str:
    """Norm that its weights are made for; an unknown name is a ValueError."""
    return row(encoder).norm


def stage(encoder: str, path: str) -> tuple[str, int] | None:
    """Name and number of the stage that a parameter is in; None if it is in none.

    Args:
      encoder: a key of `ENCODERS`; an unknown name is a ValueError.
      path: of the parameter within the encoder.
    """
    match = re.match(row(encoder).stage, path)
    return (match[1], int(match[2])) if match else None


def feature_info(encoder: str) -> tuple[Feature, ...]:
    """Channels and reduction of its features, finest first; an unknown name is a ValueError."""
    return row(encoder).info()


def depth_reductions(encoder: str, strides: int | Sequence[int] | None = None) -> tuple[int, ...]:
    """Reduction of each feature along depth with those `depth_strides`.

    Raises:
      ValueError: the name is unknown, or the strides do not fit it.
    """
    return row(encoder).depth_reductions(strides)
