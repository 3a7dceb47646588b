"""Record of a training: what a resume needs besides the arrays and the position in the data."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from crossdim_jax.training.totals import Totals

_PLAIN = (
    *("step", "gate_open", "validation_pending", "best_score", "best_step", "scored_over"),
    *("skipped_steps", "seconds", "learning_rate"),
)


@dataclasses.dataclass
class Record:
    """Progress of a training, kept in the `meta` of its checkpoints.

    Attributes:
      steps_per_epoch: see `loop.steps_per_epoch`.
      step: the last step that was dispatched.
      interval: sums since the last line of the metrics file.
      epoch: sums of the training Dice in the current epoch.
      gate_open: True once the training Dice has been good enough to validate.
      validation_pending: True from the end of an epoch until it has been validated.
      best_score, best_step: of the best validation; None before the first.
      scored_over: the classes that `best_score` is a mean over, see `loop.PRESENT`.
      skipped_steps: steps left out because they were not finite.
      seconds: training time before this process started.
      learning_rate: of the last step whose metrics are known.
    """

    steps_per_epoch: int
    step: int = 0
    interval: Totals = dataclasses.field(default_factory=Totals)
    epoch: Totals = dataclasses.field(default_factory=Totals)
    gate_open: bool = False
    validation_pending: bool = False
    best_score: float | None = None
    best_step: int | None = None
    scored_over: str | None = None
    skipped_steps: int = 0
    seconds: float = 0.0
    learning_rate: float | None = None

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], steps_per_epoch: int) -> "Record":
        """The record in a checkpoint's `meta`; earlier versions wrote fewer fields."""
        plain = {name: meta[name] for name in _PLAIN if name in meta}
        sums = {"interval": Totals(meta["interval"]), "epoch": Totals(meta["epoch_sums"])}
        return cls(steps_per_epoch, **sums, **plain)

    def meta(self) -> dict[str, Any]:
        """The record as `from_meta` takes it, in values that JSON can hold."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "epoch": self.step / self.steps_per_epoch,
            "interval": self.interval.json(),
            "epoch_sums": self.epoch.json(),
        }

    def unwritten(self) -> list[str]:
        """Kinds of lines of the metrics file that are still to be written for the last step."""
        pending = {"validation": self.validation_pending, "train": bool(self.interval.names)}
        return [kind for kind, is_pending in pending.items() if is_pending]
