"""First state of a training: parameters drawn or ported, and the start of the optimiser."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import models
from crossdim_jax.runtime import sharding
from crossdim_jax.training import optim
from crossdim_jax.training.state import TrainState
from crossdim_jax.weights.file import Weights
from crossdim_jax.weights.merge import encoder_path, merge


def init_state(
    model: Any,
    optimizer: optim.Optimizer,
    sample_shape: Sequence[int],
    mesh: jax.sharding.Mesh,
    *,
    seed: int,
    weights: Weights | None = None,
    skip: Sequence[str] = (),
    say: Callable[[str], None] | None = print,
) -> TrainState:
    """Make the state before the first step, on the mesh.

    The parameters are drawn and their overview shown, ported weights put in, and only then the
    optimiser is started, so that its state and the slow weights begin from the ported values.

    Args:
      model: a Linen module, `apply(variables, image, train=bool) -> logits (b, *spatial, k)`.
      optimizer: from `optim.make`.
      sample_shape: `(b, *spatial, channels)` of an image that the model accepts.
      mesh: from `sharding.make_mesh`.
      seed: of the initial parameters.
      weights: ported weights, see `merge.merge`.
      skip: patterns of paths that keep their drawn value, see `merge.merge`.
      say: shows the overview; None shows nothing.

    Raises:
      WeightsError: the weights do not fit the model.
      ConfigError: a pattern of the optimiser matches no parameter.
    """
    say = say if say is not None and jax.process_index() == 0 else (lambda text: None)
    variables = models.init(model, seed, tuple(sample_shape))
    say(overview(variables))
    everywhere = sharding.replicated(mesh)
    variables = jax.device_put(variables, everywhere)
    if weights is not None:
        variables, report = merge(variables, weights, skip=skip, encoder=encoder_path(model))
        say(f"{weights.name}: {report}")

    return _start(optimizer.rule, mesh)(dict(variables))


@functools.lru_cache(maxsize=8)
def _start(rule: optim.Optimizer, mesh: jax.sharding.Mesh) -> Callable[..., TrainState]:
    """Compiled `variables -> state`, the same for optimisers that differ in numbers alone."""

    def start(variables):
        params = rule.wrap(variables["params"])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=rule.init(params),
        )

    return jax.jit(start, out_shardings=sharding.replicated(mesh))


def overview(variables: Mapping[str, Any]) -> str:
    """Table of the number of parameters by top module.

    Args:
      variables: `{"params": ...}`, arrays or `jax.ShapeDtypeStruct`.
    """
    counts = {name: _size(tree) for name, tree in variables["params"].items()}
    counts["total"] = sum(counts.values())
    width = max(map(len, counts))
    lines = [f"  {name:<{width}}  {count:>12,}" for name, count in counts.items()]
    statistics = _size(variables.get("batch_stats", {}))
    if statistics:
        lines.append(f"  and {statistics:,} running statistics")
    return "\n".join(["parameters", *lines])


def _size(tree: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
