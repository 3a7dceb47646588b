"""The networks: pure Linen modules, built by name."""

from typing import Any

import flax.linen as nn

from crossdim_jax.errors import ConfigError, lookup
from crossdim_jax.models import dsnet, dxnet, initial, omnianet

init = initial.variables

NETWORKS = {"dxnet": dxnet.build, "dsnet": dsnet.build, "omnianet": omnianet.build}


def build(name: str, **kwargs: Any) -> nn.Module:
    """The network of that name: `apply(variables, image, train=bool) -> logits (b, *spatial, k)`.

    Args:
      name: a key of `NETWORKS`.
      **kwargs: the network's attributes.

    Raises:
      ConfigError: the name, an attribute or its value is unknown; the known ones are listed.
    """
    make = lookup("model.name", name, NETWORKS)
    try:
        return make(**kwargs)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"model {name}: {error}") from error
