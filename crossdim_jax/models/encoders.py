"""The encoders a network can be built on.

A network asks its encoder for two things: `features`, by calling it, and their channel counts.
Adding an encoder is adding a file and a row to `ENCODERS`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from crossdim_jax.models import efficientnet


class Encoder(NamedTuple):
    """A row of `ENCODERS`.

    Attributes:
      build: makes the module.
      stem: path of its first kernel, (*k, in, out); its shape tells the rank and the input
        channels, and porting adapts it to them.
    """

    build: Callable[..., nn.Module]
    stem: str


ENCODERS: dict[str, Encoder] = {
    f"efficientnet_{v}": Encoder(
        functools.partial(efficientnet.EfficientNet, variant=v), "conv_stem/kernel"
    )
    for v in efficientnet.SCALING
}


def check(encoder: str) -> None:
    """Raises ValueError, listing the known encoders, unless this is one."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder {encoder!r} is unknown; known: {', '.join(ENCODERS)}")


def build(encoder: str, /, **kwargs: Any) -> nn.Module:
    """The encoder module of that name; an unknown name is a ValueError listing the known ones."""
    check(encoder)
    return ENCODERS[encoder].build(**kwargs)


def stem(encoder: str) -> str:
    """The path of its first kernel within the encoder; an unknown name is a ValueError."""
    check(encoder)
    return ENCODERS[encoder].stem
