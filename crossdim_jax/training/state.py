"""Training state: arrays only, so that it can be donated, sharded and checkpointed whole."""

from typing import Any, NamedTuple

import jax


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


def step_key(seed: int, step: jax.Array | int) -> jax.Array:
    """Random key of one step: the same on every device, after every resume."""
    return jax.random.fold_in(jax.random.key(seed), step)
