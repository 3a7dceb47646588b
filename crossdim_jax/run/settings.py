"""Fields of a config as plain values, as `from_config` reads them."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Cases: where they lie, what is seen of them, and how they are split.

    Attributes:
      root: folder of cases; "" where there is none.
      patch: (z, y, x) voxels, or (y, x) for slices.
      foreground: probability that a patch holds a voxel of a region.
      cache: folder of decoded cases.
      cache_dtype: see `cache.DTYPES`.
      num_threads: threads that read patches.
      num_processes: processes that prepare cases; 0: threads do.
      changed_cases: "refuse" or "accept".
      split: arguments of `splits.make`.
    """

    root: str
    patch: tuple[int, ...]
    foreground: float
    cache: str
    cache_dtype: str
    num_threads: int
    num_processes: int
    changed_cases: str
    split: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that training starts from.

    Attributes:
      file: a weight file or the folder of a run; "" starts from random parameters.
      control: a key of `weights.control.CONTROLS`, or "" for the weights themselves.
      claims: what the file is said to be, see `record.check_fit`.
      ignore: fields of it that may differ from the file.
      skip: patterns of parameters that keep their random start.
      reestimate: training patches on which running statistics are measured; 0 for none.
    """

    file: str
    control: str
    claims: Mapping[str, Any]
    ignore: tuple[str, ...]
    skip: tuple[str, ...]
    reestimate: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Batches and length of a training, and what happens between the steps.

    Attributes:
      epochs: its length.
      steps_per_epoch: None for as many as show every patch once, see `cases.steps_per_epoch`.
      choose: weights that are evaluated: "best" or "last".
      batch_size: patches per update, over all devices.
      accumulate: micro-batches that make up one batch.
      validate_from_dice, validate_every_epochs: see `Validation`.
      keep_state: False drops what only a further training needs, see `training.finish`.
      log_every_steps, checkpoint_every_steps, keep, early_stop_epochs, skip_nonfinite,
        tensorboard: see `TrainSettings`.
    """

    epochs: int
    steps_per_epoch: int | None
    choose: str
    batch_size: int
    accumulate: int
    validate_from_dice: float
    validate_every_epochs: int
    log_every_steps: int
    checkpoint_every_steps: int | None
    keep: int
    keep_state: bool
    early_stop_epochs: int | None
    skip_nonfinite: int
    tensorboard: bool

    @property
    def micro_batch_size(self) -> int:
        """Patches that are in the network at a time, over all devices."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inference:
    """Prediction of whole images.

    Attributes:
      mode: "window" or "whole".
      overlap: fraction of a window shared with its neighbour.
      flips: test-time flips, see `windows.flip_axes`.
      window_batch: windows at a time on each device of the mesh's axis `data`.
      keep_largest: True finds rules of postprocessing in an evaluation, and applies them in a
        prediction, see `evaluation.postprocessing`.
    """

    mode: str
    overlap: float
    flips: bool | tuple[int, ...]
    window_batch: int
    keep_largest: bool
