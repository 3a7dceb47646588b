"""Learning-rate schedules: functions `update -> learning rate`, the same for equal settings."""

import functools
import math

import optax

from crossdim_jax.errors import ConfigError


@functools.lru_cache
def constant(lr: float) -> optax.Schedule:
    """`lr` for ever."""
    return optax.constant_schedule(lr)


@functools.lru_cache
def constant_then_cosine(
    lr: float, lr_end: float, *, constant_epochs: float, epochs: float, steps_per_epoch: int
) -> optax.Schedule:
    """`lr` for `constant_epochs`, then a half cosine down to `lr_end` at `epochs`.

    Messaoudi et al. 2023, Sect. 3.1.3: 1e-3 for 40 epochs, then cosine annealing to 1e-5.

    Args:
      lr: the constant learning rate.
      lr_end: reached at `epochs`, and kept from there on.
      constant_epochs: length of the constant part; `epochs` or more for no cosine.
      epochs: length of the training.
      steps_per_epoch: epochs are turned into steps with it.

    Returns:
      step -> learning rate.
    """
    if not (0 <= lr_end <= lr < math.inf and lr > 0):
        raise ConfigError(f"learning rate {lr} to {lr_end}: expected 0 <= end <= start, start > 0")
    flat = round(constant_epochs * steps_per_epoch)
    decay = round(epochs * steps_per_epoch) - flat
    if decay <= 0:
        return optax.constant_schedule(lr)
    cosine = optax.cosine_decay_schedule(lr, decay, alpha=lr_end / lr)
    return optax.join_schedules([optax.constant_schedule(lr), cosine], [flat])


@functools.lru_cache
def exponential(
    lr: float, lr_end: float, *, decay_per_epoch: float, steps_per_epoch: int
) -> optax.Schedule:
    """`lr` in the first epoch, times `decay_per_epoch` in each that follows, never below `lr_end`.

    Messaoudi et al. 2023, Sect. 3.1.1: "reduced at each epoch by 5% until it reaches" 1e-5.

    Args:
      lr: the learning rate of the first epoch.
      lr_end: the lowest.
      decay_per_epoch: between 0 and 1.
      steps_per_epoch: epochs are turned into steps with it.

    Returns:
      step -> learning rate.
    """
    epochs_until(lr, lr_end, decay_per_epoch)
    return optax.exponential_decay(
        lr, steps_per_epoch, decay_per_epoch, staircase=True, end_value=lr_end
    )


def epochs_until(lr: float, lr_end: float, decay_per_epoch: float) -> int:
    """Epochs after which `exponential` has come down to `lr_end`.

    Raises ConfigError if it never does.
    """
    if not (0 < decay_per_epoch < 1 and 0 < lr_end <= lr < math.inf):
        raise ConfigError(
            f"learning rate {lr} to {lr_end}, times {decay_per_epoch} an epoch: expected "
            "0 < end <= start and a factor between 0 and 1"
        )
    return max(1, math.ceil(round(math.log(lr_end / lr) / math.log(decay_per_epoch), 9)))
