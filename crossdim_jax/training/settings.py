"""Settings of a training: its length, and what happens between the steps."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdim_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """Settings of `loop.fit`.

    Attributes:
      workdir: the run folder; see `run_folder.claim`.
      regions: names of the classes that Dice is measured of, for the metrics file.
      total_steps: length of the training.
      steps_per_epoch: see `loop.steps_per_epoch`.
      log_every_steps: steps averaged in one line of `metrics.jsonl`.
      checkpoint_every_steps: None for every epoch; 0 for the end alone, and for stops.
      keep: number of the latest checkpoints that are kept.
      keep_best: True keeps the best weights by validation besides, and validates at the end in any
        case; False validates for the curve only.
      early_stop_epochs: training ends once so many epochs have brought no better validation; None:
        never.
      skip_nonfinite: number of steps of the run that may be left out because their loss or gradient
        was not finite; more than 0 needs a step made with `skip_nonfinite`.
      tensorboard: True writes event files for TensorBoard beside `metrics.jsonl`.
      config: recorded in every checkpoint; not read.
      progress: True shows it on stderr.

    Raises:
      ConfigError: a length or interval is below 1.
    """

    workdir: Path
    regions: tuple[str, ...]
    total_steps: int
    steps_per_epoch: int
    log_every_steps: int = 10
    checkpoint_every_steps: int | None = None
    keep: int = 2
    keep_best: bool = True
    early_stop_epochs: int | None = None
    skip_nonfinite: int = 0
    tensorboard: bool = False
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    progress: bool = True

    def __post_init__(self):
        lengths = {
            "total_steps": self.total_steps,
            "steps_per_epoch": self.steps_per_epoch,
            "log_every_steps": self.log_every_steps,
            "checkpoint_every_steps": self.checkpoint_interval,
        }
        if min(lengths.values()) < 1:
            listed = ", ".join(f"{name}={value}" for name, value in lengths.items())
            raise ConfigError(f"{listed}: expected >= 1")

    @property
    def checkpoint_interval(self) -> int:
        """Steps from one checkpoint to the next: the whole training for 0."""
        every = self.checkpoint_every_steps
        return self.steps_per_epoch if every is None else every or self.total_steps
