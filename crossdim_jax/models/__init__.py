"""The networks: pure Linen modules, built by name."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import ConfigError
from crossdim_jax.models import dsnet, dxnet, omnianet

NETWORKS = {"dxnet": dxnet.build, "dsnet": dsnet.build, "omnianet": omnianet.build}


def build(name: str, **kwargs: Any) -> nn.Module:
    """The network of that name: `apply(variables, image, train=bool) -> logits (b, *spatial, k)`.

    Args:
      name: a key of `NETWORKS`.
      **kwargs: the network's attributes.

    Raises:
      ConfigError: the name, an attribute or its value is unknown; the known ones are listed.
    """
    if name not in NETWORKS:
        raise ConfigError(f"model.name={name!r} is unknown; known: {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name}: {error}") from error


def init(model: nn.Module, seed: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The model's initial variables, without computing its output.

    The parameters are drawn one by one, outside of `jit`: a program that draws them all takes XLA
    minutes to compile.

    Args:
      model: a network.
      seed: of the parameters.
      shape: `(b, *spatial, c)` of an input; only its rank and channels matter.
    """
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model.lazy_init({"params": jax.random.key(seed)}, image)
