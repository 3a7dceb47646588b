"""Optimisers, lookahead, and which parameters they touch.

Parameters are named by their Flax path, `params/encoder/blocks_1_0/conv_dw/kernel`, and chosen by
regular expressions for the whole path, the same that loading weights takes (`paths.select`):
`encoder/.*`, `.*/(bias|scale)`. A pattern that matches nothing is an error.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from crossdim_jax import ranges
from crossdim_jax.errors import ConfigError, WeightsError, check_name
from crossdim_jax.training import schedules
from crossdim_jax.weights.paths import select

Numbers = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimiser and what a training step has to know of it.

    The learning rate and the length of freezing are arguments of an update, `numbers`: trainings
    that differ in them alone share their compiled programs. `make` gives equal settings the same
    `tx`, and equal schedules are the same function, so that equal trainings are found to be equal.

    Attributes:
      tx: the gradient transformation of the fast parameters.
      learning_rate: update -> learning rate.
      freeze_steps: see `make`.
      sync_period: fast updates per slow one; 0 for no lookahead. With it, parameters are kept as
        `optax.LookaheadParams(fast, slow)` and the state is an `optax.LookaheadState`.
      slow_step_size: of the way from slow to fast, taken at each synchronisation.
    """

    tx: optax.GradientTransformation
    learning_rate: optax.Schedule | None
    freeze_steps: int | None = None
    sync_period: int = 0
    slow_step_size: float = 0.5

    @property
    def rule(self) -> "Optimizer":
        """The optimiser without its numbers: what its programs depend on."""
        return dataclasses.replace(self, learning_rate=None, freeze_steps=None)

    @property
    def numbers(self) -> Callable[[jax.Array, jax.Array], Numbers]:
        """`(step, updates made) -> arguments of update`, and `logged_rate`, that of the step."""
        return _numbers(self.learning_rate, self.freeze_steps or 0)

    def wrap(self, params: Any) -> Any:
        """The parameters as the training state keeps them; fast and slow share no buffer."""
        if not self.sync_period:
            return params
        return optax.LookaheadParams(fast=params, slow=jax.tree.map(jnp.copy, params))

    def init(self, params: Any) -> Any:
        """The state before the first step, from parameters as `wrap` gives them."""
        state = self.tx.init(fast(params))
        if not self.sync_period:
            return state
        return optax.LookaheadState(state, jnp.zeros((), jnp.int32))

    def update(
        self, grads: Any, state: Any, params: Any, numbers: Numbers | None = None
    ) -> tuple[Any, Any]:
        """The parameters and the state after a step.

        Args:
          grads: the gradient at the fast parameters.
          state: from `init` or the step before.
          params: as `wrap` gives them.
          numbers: of this update; None for the optimiser's own.
        """
        if numbers is None:
            count = updates_made(state)
            numbers = self.numbers(count, count)
        if self.sync_period:
            return self._lookahead(grads, state, params, numbers)
        updates, state = self.tx.update(grads, state, params, numbers=numbers)
        return optax.apply_updates(params, updates), state

    def _lookahead(self, grads, state, params, numbers):
        """As `optax.lookahead`, but that the fast parameters are set to the new slow ones.

        A difference of fast and slow would be added to both otherwise, so neither could be
        overwritten in place and both would be copied first. Zhang et al. 2019.
        """
        updates, inner = self.tx.update(grads, state.fast_state, params.fast, numbers=numbers)
        ahead = optax.apply_updates(params.fast, updates)
        sync = state.steps_since_sync == self.sync_period - 1
        step = jnp.where(sync, self.slow_step_size, 0.0)
        slow = jax.tree.map(lambda s, f: s + step.astype(s.dtype) * (f - s), params.slow, ahead)
        # Made before the fast ones, which are read here.
        slow = jax.lax.optimization_barrier(slow)
        new = jax.tree.map(lambda s, f: jnp.where(sync, s, f), slow, ahead)
        steps = (state.steps_since_sync + 1) % self.sync_period
        return optax.LookaheadParams(new, slow), optax.LookaheadState(inner, steps)


@functools.lru_cache
def _numbers(schedule: optax.Schedule, freeze_steps: int):
    def numbers(step: jax.Array, count: jax.Array) -> Numbers:
        return {
            "logged_rate": jnp.asarray(schedule(step), jnp.float32),
            "learning_rate": jnp.asarray(schedule(count), jnp.float32),
            "freeze_steps": jnp.asarray(freeze_steps, jnp.int32),
        }

    return numbers


def updates_made(opt_state: Any) -> jax.Array:
    """Number of updates that a state has seen: steps that were left out do not count."""

    def counts(node):
        return isinstance(node, optax.ScaleByScheduleState)

    (found,) = filter(counts, jax.tree.leaves(opt_state, is_leaf=counts))
    return found.count


def norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all arrays of a tree together.

    Of vectors: the compiled program then has one loop for all arrays of a size.
    """
    squares = (jnp.sum(jnp.square(x.ravel())) for x in jax.tree.leaves(tree))
    return jnp.sqrt(sum(squares))


def fast(params: Any) -> Any:
    """The parameters that gradients are taken at; `params` itself without lookahead."""
    return params.fast if isinstance(params, optax.LookaheadParams) else params


def slow(params: Any) -> Any:
    """The parameters to evaluate and export; `params` itself without lookahead."""
    return params.slow if isinstance(params, optax.LookaheadParams) else params


def since_sync(opt_state: Any) -> jax.Array | int:
    """Number of updates made since fast and slow parameters were equal; 0 without lookahead."""
    return opt_state.steps_since_sync if isinstance(opt_state, optax.LookaheadState) else 0


class ScheduledNadamState(NamedTuple):
    """State of `scale_by_scheduled_nadam`: steps done, product of the momenta, the two moments."""

    count: jax.Array
    momentum_product: jax.Array
    mu: Any
    nu: Any


def scale_by_scheduled_nadam(
    b1: float, b2: float, eps: float, schedule_decay: float
) -> optax.GradientTransformation:
    r"""Nadam with Dozat's momentum schedule.

    With :math:`\beta_t = b_1 (1 - 0.5 \cdot 0.96^{t d})`, `d` the `schedule_decay`:

    .. math::
      m_t = b_1 m_{t-1} + (1 - b_1) g_t, \quad v_t = b_2 v_{t-1} + (1 - b_2) g_t^2

      u_t = \left( \frac{1 - \beta_t}{1 - \prod_{i \le t} \beta_i} g_t +
        \frac{\beta_{t+1}}{1 - \prod_{i \le t+1} \beta_i} m_t \right) /
        \left( \sqrt{v_t / (1 - b_2^t)} + \epsilon \right)

    Args:
      b1: limit of the momentum.
      b2: decay of the second moment.
      eps: added to the root.
      schedule_decay: 0.004 (= 1/250) in Dozat's paper and in the released code.

    Returns:
      The transformation, to be followed by a scaling with the negative learning rate.

    References:
      Dozat, `Incorporating Nesterov Momentum into Adam
      <https://openreview.net/pdf?id=OM0jvwB8jIp57ZJjtNEZ>`_, 2016
    """

    def momentum(t):
        return b1 * (1 - 0.5 * 0.96 ** (t * schedule_decay))

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return ScheduledNadamState(
            jnp.zeros((), jnp.int32), jnp.ones(()), zeros, jax.tree.map(jnp.zeros_like, params)
        )

    def update(updates, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        t = count.astype(jnp.float32)
        now, following = momentum(t), momentum(t + 1)
        product = state.momentum_product * now
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, updates)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, updates)
        of_gradient = (1 - now) / (1 - product)
        of_moment = following / (1 - product * following)
        root_scale = 1 - b2**t
        scaled = jax.tree.map(
            lambda g, m, v: (of_gradient * g + of_moment * m) / (jnp.sqrt(v / root_scale) + eps),
            updates,
            mu,
            nu,
        )
        return scaled, ScheduledNadamState(count, product, mu, nu)

    return optax.GradientTransformation(init, update)


def _nadam(b1, b2, eps, schedule_decay):
    if schedule_decay is None:
        return optax.scale_by_adam(b1, b2, eps, nesterov=True)
    return scale_by_scheduled_nadam(b1, b2, eps, schedule_decay)


def _adam(b1, b2, eps, schedule_decay):
    if schedule_decay is not None:
        raise ConfigError("schedule_decay belongs to nadam; set it to None for adam")
    return optax.scale_by_adam(b1, b2, eps)


RULES: dict[str, Callable[..., optax.GradientTransformation]] = {"nadam": _nadam, "adam": _adam}


def make(
    name: str = "nadam",
    learning_rate: float | optax.Schedule = 1e-3,
    *,
    b1: float = 0.95,
    b2: float = 0.99,
    eps: float = 1e-8,
    schedule_decay: float | None = None,
    sync_period: int | None = 6,
    slow_step_size: float = 0.5,
    clip_norm: float | None = None,
    weight_decay: float = 0.0,
    decay: Sequence[str] = (".*/kernel",),
    freeze: Sequence[str] = (),
    freeze_steps: int | None = None,
    rates: Sequence[tuple[str, float]] = (),
) -> Optimizer:
    """The optimiser of the recipes: Nadam inside lookahead.

    Messaoudi et al. 2023, Sect. 3.1.3: betas (0.95, 0.99), 6 fast updates, slow step 0.5. The
    released code: `eps=1e-5, schedule_decay=0.004`.

    Args:
      name: one of `RULES`.
      learning_rate: a number or step -> number.
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      schedule_decay: momentum schedule of nadam, see `scale_by_scheduled_nadam`, at 0 the constant
        momentum b1 / 2; None for none.
      sync_period: fast updates per slow update; 0 or None for no lookahead.
      slow_step_size: of the way from slow to fast, taken at each synchronisation.
      clip_norm: limit of the global gradient norm over the parameters that are not frozen; 0 or
        None for none.
      weight_decay: decoupled, times the learning rate.
      decay: patterns of the parameters that decay; looked at only when `weight_decay` is not 0.
      freeze: patterns of the parameters that keep their value.
      freeze_steps: how many steps they keep it for; None: always. Until then their gradients count
        as 0 for the moments, too.
      rates: (pattern, factor): the learning rate of the parameters that match is so many times the
        others'; of several patterns that match, the last counts.

    Returns:
      `Optimizer`; its `init` raises ConfigError for a pattern that matches no parameter.

    Raises ConfigError for a number outside its range, see `ranges.RANGES`.
    """
    check_name("optimiser", name, RULES)
    numbers = {
        **{"b1": b1, "b2": b2, "eps": eps, "schedule_decay": schedule_decay},
        **{"sync_period": sync_period, "slow_step_size": slow_step_size, "clip_norm": clip_norm},
        **{"weight_decay": weight_decay, "rates": tuple(rates)},
    }
    # A rate of 0, which keeps all as it is, is no training; but code may ask for it.
    if not callable(learning_rate) and learning_rate != 0:
        numbers["learning_rate"] = learning_rate
    ranges.check("optim", **numbers)
    schedule = learning_rate if callable(learning_rate) else schedules.constant(learning_rate)
    freeze = tuple(freeze)
    if freeze_steps is not None and not (freeze and freeze_steps > 0):
        raise ConfigError(
            f"freezing for {freeze_steps} steps, of the patterns {freeze}: expected a pattern or "
            "more, and a length above 0; None freezes for ever"
        )
    tx = _transformation(
        RULES[name],
        (b1, b2, eps, schedule_decay),
        clip_norm or 0.0,
        (weight_decay, tuple(decay)),
        (freeze, freeze_steps is not None),
        tuple((pattern, factor) for pattern, factor in rates),
    )
    return Optimizer(tx, schedule, freeze_steps, sync_period or 0, slow_step_size)


@functools.lru_cache
def _transformation(rule, moments, clip_norm, decay, freeze, rates):
    """The gradient transformation of `make`, one and the same for equal settings."""
    weight_decay, decay = decay
    parts = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    parts.append(rule(*moments))
    if weight_decay:
        parts.append(optax.add_decayed_weights(weight_decay, lambda p: matches(p, decay)))
    tx = optax.chain(*parts, _scale_by_learning_rate())
    patterns, for_some_steps = freeze
    if patterns:
        tx = (_frozen_for if for_some_steps else _frozen)(tx, patterns)
    return optax.chain(tx, _scaled(rates)) if rates else tx


def _scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    """As `optax.scale_by_learning_rate`, with the rate as an argument."""

    def init(params):
        del params
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, *, numbers, **more):
        del params, more
        factor = -1 * numbers["learning_rate"]
        updates = jax.tree.map(lambda u: jnp.array(factor, u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def matches(params: Any, patterns: Sequence[str]) -> Any:
    """A tree of bool like `params`: whether any pattern matches the parameter's whole path.

    Raises ConfigError for a pattern that matches nothing.
    """
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = ["/".join(["params", *(str(key.key) for key in path)]) for path, _ in leaves]
    try:
        chosen = select(patterns, paths)
    except WeightsError as error:
        raise ConfigError(f"in the optimiser's freeze, decay or rates: {error}") from error
    return jax.tree.unflatten(jax.tree.structure(params), [path in chosen for path in paths])


def _frozen(tx: optax.GradientTransformation, patterns: tuple[str, ...]):
    """`tx` on all parameters but those that match; those keep no optimiser state either."""

    def labels(params):
        return jax.tree.map(lambda hit: "frozen" if hit else "trained", matches(params, patterns))

    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)


class FrozenForState(NamedTuple):
    """State of `_frozen_for`: steps done, and that of what it wraps."""

    count: jax.Array
    inner: Any


def _frozen_for(tx: optax.GradientTransformationExtraArgs, patterns: tuple[str, ...]):
    """`tx`, to which the parameters that match have no gradient and no update for some steps."""

    def init(params):
        matches(params, patterns)  # a pattern that matches nothing is said before training
        return FrozenForState(jnp.zeros((), jnp.int32), tx.init(params))

    def update(updates, state, params=None, *, numbers, **more):
        hits, frozen = matches(updates, patterns), state.count < numbers["freeze_steps"]

        def held(tree):
            return jax.tree.map(lambda u, hit: jnp.where(frozen & hit, 0, u), tree, hits)

        updates, inner = tx.update(held(updates), state.inner, params, numbers=numbers, **more)
        return held(updates), FrozenForState(optax.safe_increment(state.count), inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _scaled(rates: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    """Updates times the factor of the last pattern that matches."""

    def scaled(tree):
        for i, (pattern, factor) in enumerate(rates):
            hits = matches(tree, (pattern,))
            later = [matches(tree, (other,)) for other, _ in rates[i + 1 :]]
            tree = jax.tree.map(
                lambda u, hit, *others, by=factor: u * by if hit and not any(others) else u,
                tree,
                hits,
                *later,
            )
        return tree

    def init(params):
        for pattern, _ in rates:
            matches(params, (pattern,))
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda u, state, params=None: (scaled(u), state))
