"""The training step, a pure function of arrays, and its compilation for a mesh.

The first state is made in `initialise.py`, the loop around the steps is in `loop.py`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import losses
from crossdim_jax.data import augment
from crossdim_jax.runtime import memory, sharding
from crossdim_jax.training import batch_stats as statistics
from crossdim_jax.training import optim
from crossdim_jax.training.state import TrainState, step_key

Batch = Mapping[str, jax.Array]


Metrics = losses.Sums
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """Training step: a pure function `(state, batch) -> (state, metrics)`.

    Its parts are one and the same function for steps that differ in seed, learning rate or length
    of freezing alone, which are arguments of theirs: such steps share their compiled programs.

    Attributes:
      gradient: `(state, batch, seed) -> sums`: of gradients, of metrics, and the moments that batch
        norms saw.
      numbers: `(step, updates made) -> numbers` of an update, see `Optimizer.numbers`.
      update: `(state, sums, numbers) -> (state, metrics)`.
      seed: `()` uint32.
    """

    gradient: Callable[[TrainState, Batch, Any], Any]
    numbers: Callable[[Any, Any], optim.Numbers]
    update: Callable[[TrainState, Any, optim.Numbers], tuple[TrainState, Metrics]]
    seed: Any

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        sums = self.gradient(state, batch, self.seed)
        return self.update(
            state, sums, self.numbers(state.step, optim.updates_made(state.opt_state))
        )


def make_train_step(
    model: Any,
    optimizer: optim.Optimizer,
    loss: Callable[..., Metrics],
    *,
    seed: int,
    accumulate: int = 1,
    activation: str = "sigmoid",
    skip_nonfinite: bool = False,
    augmentation: augment.Augment | None = None,
) -> TrainStep:
    """The training step of a network, as a pure function.

    The gradient is that of the batch's mean loss, `sum / count`, taken at the fast parameters.
    With `accumulate`, micro-batches follow each other within the step: sums and gradients of sums
    are added up and divided once, so the update is that of the whole batch up to float32
    rounding. Two things do depend on it: a batch norm normalises a micro-batch by that
    micro-batch's own statistics, and dropout draws anew for each. The running statistics do not:
    they take one step towards those of the whole batch, see `statistics.combine`. Under lookahead
    they do so only where fast and slow parameters are equal, see `statistics.advance`.

    Args:
      model: a Linen module, `apply(variables, image, train=True, rngs={"dropout": key},
        mutable=["moments"]) -> logits (b, *spatial, k), changes`; its batch norms are
        `layers.Norm`.
      optimizer: from `optim.make`.
      loss: the function of a row of `losses.LOSSES`.
      seed: dropout draws from it and the step.
      accumulate: micro-batches per step; must divide the batch.
      activation: of that row.
      skip_nonfinite: True: a step whose loss or gradient is not finite leaves all but the step
        number as it was. Needs memory for a second state while it decides.
      augmentation: changes each batch before it is cut up; draws from the seed and the step too.

    Returns:
      a function of a `TrainState` and `{"image": (b, *spatial, c), "target": (b, *spatial, k)}`,
      where `"weights": (b, k)` may be added (see `losses.sample_weights`); its metrics are
      name -> `(sum, count)`: the loss and its terms, `dice` by class, `grad_norm`, `learning_rate`.
    """
    settings = (model, loss, activation, accumulate, augmentation)
    update = _update_of(optimizer.rule, skip_nonfinite)
    return TrainStep(_gradient_of(*settings), optimizer.numbers, update, np.uint32(seed))


# As many programs as a comparison of trainings has at once.
@functools.lru_cache(maxsize=8)
def _gradient_of(
    model: Any,
    loss: Callable[..., Metrics],
    activation: str,
    accumulate: int,
    augmentation: augment.Augment | None,
) -> Callable[[TrainState, Batch, jax.Array], Any]:
    grad = jax.grad(_sum_loss(model, loss, activation), has_aux=True)

    def gradient(state: TrainState, batch: Batch, seed: jax.Array) -> Any:
        key = step_key(seed, state.step)
        if augmentation is not None:
            batch = _augmented(augmentation, batch, jax.random.fold_in(key, augment.STREAM))
        at = optim.fast(state.params), state.batch_stats
        if accumulate > 1:
            return _accumulated(grad, *at, batch, key, accumulate)
        grads, (metrics, moments) = grad(*at, batch, jax.random.fold_in(key, 0))
        return grads, metrics, moments

    return gradient


@functools.lru_cache(maxsize=8)
def _update_of(rule: optim.Optimizer, skip_nonfinite: bool) -> Callable[..., Any]:
    def update(state: TrainState, sums: Any, numbers: optim.Numbers) -> tuple[TrainState, Metrics]:
        return _update(rule, state, *sums, numbers, skip_nonfinite=skip_nonfinite)

    return update


def _sum_loss(model: Any, loss: Callable[..., Metrics], activation: str) -> Callable:
    """`(params, batch_stats, batch, key) -> sum of the loss, (metrics, moments)`."""

    def sum_loss(params, batch_stats, batch, key):
        variables = {"params": params}
        if batch_stats:
            variables["batch_stats"] = batch_stats
        target, weights = batch["target"], batch.get("weights")
        logits, changes = model.apply(
            variables, batch["image"], train=True, rngs={"dropout": key}, mutable=["moments"]
        )
        metrics = loss(logits, target, weights)
        metrics = metrics | losses.hard_dice(logits, target, weights, activation=activation)
        return metrics["loss"][0], (metrics, changes.get("moments", {}))

    return sum_loss


def _augmented(augmentation: augment.Augment, batch: Batch, key: jax.Array) -> Batch:
    image, target = augmentation(key, batch["image"], batch["target"])
    return {**batch, "image": image, "target": target}


def _accumulated(
    grad: Callable, params: Any, batch_stats: Any, batch: Batch, key: jax.Array, parts: int
) -> Any:
    """Sums of the gradients and metrics of micro-batches, and the moments of the whole batch."""

    def add(grads, part):
        index, batch = part
        more, aux = grad(params, batch_stats, batch, jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, grads, more), aux

    cut = {name: _split(array, parts) for name, array in batch.items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, (metrics, moments) = jax.lax.scan(add, zeros, (jnp.arange(parts), cut))
    return grads, jax.tree.map(lambda x: x.sum(0), metrics), statistics.combine(moments)


def _split(array: jax.Array, parts: int) -> jax.Array:
    """`(b, ...)` -> `(parts, b / parts, ...)`.

    Part i takes samples i, i + parts, ...: each device cuts up its own samples, none travels.
    """
    batch, *rest = array.shape
    return array.reshape(batch // parts, parts, *rest).swapaxes(0, 1)


def _update(
    optimizer: optim.Optimizer,
    state: TrainState,
    grads: Any,
    metrics: Metrics,
    moments: Any,
    numbers: optim.Numbers,
    *,
    skip_nonfinite: bool,
) -> tuple[TrainState, Metrics]:
    """The state after a step by sums of gradients, and its metrics."""
    batch_stats = statistics.advance(
        state.batch_stats,
        moments,
        state.step,
        optimizer.sync_period,
        optim.since_sync(state.opt_state),
    )
    count = jnp.maximum(metrics["loss"][1], 1e-8)  # nothing labelled: no gradient, not NaN
    one = jnp.ones(())
    metrics = metrics | {
        "grad_norm": (optim.norm(grads) / count, one),
        "learning_rate": (numbers["logged_rate"], one),
    }
    grads = jax.tree.map(lambda g: g / count, grads)
    params, opt_state = optimizer.update(grads, state.opt_state, state.params, numbers)
    after = TrainState(state.step + 1, params, batch_stats, opt_state)
    if skip_nonfinite:
        after = _if_finite(after, state, metrics)
    return after, metrics


def _if_finite(after: TrainState, before: TrainState, metrics: Metrics) -> TrainState:
    """`after`, or where loss or gradient is not finite `before` with the step number of `after`."""
    good = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(metrics["grad_norm"][0])
    before = before._replace(step=after.step)
    return jax.tree.map(lambda new, old: jnp.where(good, new, old), after, before)


def jit_step(step: TrainStep, mesh: jax.sharding.Mesh) -> "JitStep":
    """A training step compiled for a mesh.

    The state passed to it is donated and cannot be used again. Batches lie as
    `sharding.shard_batch` puts them.
    """
    return JitStep(step, mesh)


class JitStep:
    """Compiled training step: `(state, batch) -> (state, metrics)`, see `jit_step`.

    Gradient and update are two programs, compiled one after the other: a compiler holds a whole
    program at once, and needs more memory for the loops over every parameter of an update than the
    update itself. Both are compiled before the first is run, and what the compiler has freed is
    given back in between: held beside the step's own arrays it would make up a good part of the
    process's peak. The learning rate is a third program, of a few numbers: a schedule that is
    computed in another way than by itself would be another in its last bit.

    Steps of the same parts share their programs as long as the process lives.
    """

    def __init__(self, step: TrainStep, mesh: jax.sharding.Mesh):
        everywhere = sharding.replicated(mesh)
        self._parts = _Programs.of(step.gradient, step.update, mesh)
        self._step = dataclasses.replace(
            step,
            numbers=_numbers_program(step.numbers, mesh),
            seed=jax.make_array_from_callback((), everywhere, lambda _: np.asarray(step.seed)),
        )

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        shapes = tuple((name, array.shape) for name, array in batch.items())
        if shapes not in self._parts.compiled:
            whole = self.compile(state, batch)
            self._parts.compiled[shapes] = whole.gradient, whole.update
            memory.give_back()
        gradient, update = self._parts.compiled[shapes]
        return dataclasses.replace(self._step, gradient=gradient, update=update)(state, batch)

    def compile(self, state: Any, batch: Any) -> TrainStep:
        """The step with its executables for arrays or shapes like these."""
        parts, count = self._parts, jax.ShapeDtypeStruct((), jnp.int32)
        gradient = parts.gradient.lower(state, batch, self._step.seed)
        numbers = jax.eval_shape(self._step.numbers, count, count)
        update = parts.update.lower(state, gradient.out_info, numbers)
        return dataclasses.replace(self._step, gradient=gradient.compile(), update=update.compile())


@dataclasses.dataclass(frozen=True)
class _Programs:
    """Programs of a step's parts on a mesh, and their executables by the shapes of a batch."""

    gradient: Any
    update: Any
    compiled: dict[Any, tuple[Any, Any]]

    @classmethod
    @functools.lru_cache(maxsize=8)
    def of(cls, gradient: Callable, update: Callable, mesh: jax.sharding.Mesh) -> "_Programs":
        """Those of equal parts are the same."""
        everywhere = sharding.replicated(mesh)
        return cls(
            jax.jit(
                gradient,
                in_shardings=(everywhere, None, everywhere),
                out_shardings=everywhere,
                keep_unused=True,  # its account of memory is then that of all that is there
            ),
            jax.jit(update, in_shardings=everywhere, out_shardings=everywhere, donate_argnums=0),
            {},
        )


@functools.lru_cache(maxsize=64)
def _numbers_program(numbers: Callable, mesh: jax.sharding.Mesh) -> Callable:
    everywhere = sharding.replicated(mesh)
    return jax.jit(numbers, in_shardings=everywhere, out_shardings=everywhere)
