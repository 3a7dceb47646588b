"""Length of a training, and what follows from it: the schedule, validations, checkpoints."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

STEPS = 25_000  # of a training, if neither a number nor a time is given
LEAST_STEPS = 250  # that a time should hold; smaller patches make steps shorter
CONSTANT = 40 / 90  # of the epochs, at the full learning rate: the paper's 40 of 90
VALIDATIONS = 20  # of a training
SHORT = 50  # steps: of shorter epochs not each is followed by a checkpoint

# (name of a line, what finds its value and the reason) -> its value, given or found.
Line = Callable[[str, Callable[[], tuple[Any, str]]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """Memory and time that a training may take.

    Attributes:
      memory_gib: of a device.
      steps: None: what `minutes` hold, else `STEPS`.
      minutes: of its steps; None: any.
      voxels_per_second: of patches, as measured; needed for `minutes`.
    """

    memory_gib: float = 8.0
    steps: int | None = None
    minutes: float | None = None
    voxels_per_second: float | None = None

    @property
    def voxels_per_step(self) -> float:
        """Voxels of a step at most, so that the time holds the steps."""
        if self.minutes is None:
            return math.inf
        return self.minutes * 60 * self.voxels_per_second / self.least_steps

    @property
    def least_steps(self) -> int:
        """Steps that the time should hold."""
        return self.steps or LEAST_STEPS


ANY = Budget()


def length(
    steps_per_epoch: int,
    voxels: int,
    budget: Budget,
    rates: tuple[float, float] | None,
    line: Line,
) -> dict[str, Any]:
    """Lines of a plan from the epochs on.

    Args:
      steps_per_epoch: of the training.
      voxels: of a step.
      budget: that the steps follow from.
      rates: the first and the last learning rate, for an exponential decay.
      line: gives a line's value, see `Line`.
    """
    epochs = int(line("epochs", lambda: _epochs(steps_per_epoch, voxels, budget)))

    def decay() -> tuple[float | None, str]:
        if rates is None or not 0 < rates[1] < rates[0]:
            return None, "no exponential decay"
        return (rates[1] / rates[0]) ** (1 / epochs), f"down to {rates[1]:g} at the end"

    def checkpoints() -> tuple[int | None, str]:
        if steps_per_epoch >= SHORT:
            return None, "one after every epoch"
        return steps_per_epoch * math.ceil(SHORT / steps_per_epoch), "epochs are short"

    constant = (round(CONSTANT * epochs), f"{CONSTANT:.0%} of the epochs, then a cosine")
    every = (math.ceil(epochs / VALIDATIONS), f"some {VALIDATIONS} times in all")
    return {
        "epochs": epochs,
        "constant_epochs": line("constant_epochs", lambda: constant),
        "decay_per_epoch": line("decay_per_epoch", decay),
        "validate_every_epochs": line("validate_every_epochs", lambda: every),
        "checkpoint_every_steps": line("checkpoint_every_steps", checkpoints),
    }


def _epochs(steps_per_epoch: int, voxels: int, budget: Budget) -> tuple[int, str]:
    steps, why = budget.steps or STEPS, "as asked for"
    if budget.steps is None:
        why = "the default, a tenth of nnU-Net's: the encoder is trained already"
        if budget.minutes is not None:
            seconds = voxels / budget.voxels_per_second
            steps = max(1, int(budget.minutes * 60 / seconds))
            why = f"what {budget.minutes:g} minutes hold at {seconds:.3g} s a step"
    epochs = max(1, round(steps / steps_per_epoch))
    return epochs, f"{epochs * steps_per_epoch} steps, {steps_per_epoch} an epoch: {why}"
