"""Training state: arrays only, so that it can be donated, sharded and checkpointed whole."""

from typing import Any, NamedTuple

import jax
import optax

from crossdim_jax.training import optim


class TrainState(NamedTuple):
    """State of a training: everything a step changes.

    There is no random key: `step_key` derives it from the seed and the step.

    Attributes:
      step: `()` int32, the number of updates made.
      params: the model's parameters, float32; `optax.LookaheadParams(fast, slow)` under lookahead.
      batch_stats: running statistics of batch norms, `{}` if the model has none.
      opt_state: the optimiser's state.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any


def step_key(seed: jax.Array | int, step: jax.Array | int) -> jax.Array:
    """Random key of one step: the same on every device, after every resume."""
    return jax.random.fold_in(jax.random.key(seed), step)


def variables(state: TrainState) -> dict[str, Any]:
    """Variables to evaluate: the slow parameters and the running statistics."""
    return {"params": optim.slow(state.params), "batch_stats": state.batch_stats}


def training_arrays(state: TrainState) -> dict[str, Any]:
    """Arrays that a resume needs besides `variables`: step, fast parameters, optimiser's state."""
    fast = state.params.fast if isinstance(state.params, optax.LookaheadParams) else None
    return {"step": state.step, "fast": fast, "opt_state": state.opt_state}


def from_checkpoint(variables: dict[str, Any], training: dict[str, Any]) -> TrainState:
    """The state of which `variables` and `training_arrays` are the parts."""
    params = variables["params"]
    if training["fast"] is not None:
        params = optax.LookaheadParams(fast=training["fast"], slow=params)
    return TrainState(training["step"], params, variables["batch_stats"], training["opt_state"])
