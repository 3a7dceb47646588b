"""The encoders a network can be built on.

A network asks its encoder for two things: `features`, by calling it, and their channel counts.
Adding an encoder is adding a file and a row to `ENCODERS`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from crossdim_jax.models import efficientnet

ENCODERS: dict[str, Callable[..., nn.Module]] = {
    f"efficientnet_{v}": functools.partial(efficientnet.EfficientNet, variant=v)
    for v in efficientnet.SCALING
}


def check(encoder: str) -> None:
    """Raises ValueError, listing the known encoders, unless this is one."""
    if encoder not in ENCODERS:
        raise ValueError(f"encoder {encoder!r} is unknown; known: {', '.join(ENCODERS)}")


def build(encoder: str, /, **kwargs: Any) -> nn.Module:
    """The encoder module of that name; an unknown name is a ValueError listing the known ones."""
    check(encoder)
    return ENCODERS[encoder](**kwargs)
