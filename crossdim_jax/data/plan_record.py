"""Plan of a training, each line a value and its reason: as a table, a record, and settings."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

_COLUMNS = 100
_VALUES = 28  # of them, at most, for the values


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a training.

    Attributes:
      spacing_mm: (z, y, x) to which volumes are resampled; None: they are not.
      normalisation: a scheme for each channel, see `imaging.normalise`.
      depth_kernels, depth_strides: of the encoder, None: as in the plane; for kernels to take
        effect weights are ported with the same numbers.
      patch: (z, y, x), or (y, x) to which slices are resized.
      batch_size: patches or slices of a step.
      epochs: of the training cases, or their slices.
      loss: a key of `losses.LOSSES`.
      constant_epochs, decay_per_epoch: of the learning rate, see `training.optim`.
      validate_every_epochs: see `training.validation`.
      checkpoint_every_steps: None: after every epoch.
      reasons: {line: why}.
      intensities: of the foreground, for "ct", see `Fingerprint.intensities`.
    """

    # Line -> the field of a config that it stands for.
    FIELDS: ClassVar = {
        "spacing_mm": "challenge.spacing_mm",
        "normalisation": "challenge.normalisation",
        "patch": "data.patch",
        "depth_kernels": "model.depth_kernels",
        "depth_strides": "model.depth_strides",
        "batch_size": "train.batch_size",
        "loss": "train.loss",
        "epochs": "train.epochs",
        "constant_epochs": "optim.constant_epochs",
        "decay_per_epoch": "optim.decay_per_epoch",
        "validate_every_epochs": "train.validate_every_epochs",
        "checkpoint_every_steps": "train.checkpoint_every_steps",
    }
    INTENSITIES: ClassVar = "challenge.intensities"

    spacing_mm: tuple[float, ...] | None
    normalisation: tuple[str, ...]
    patch: tuple[int, ...]
    depth_kernels: tuple[int, ...] | None
    depth_strides: tuple[int, ...] | None
    batch_size: int
    loss: str
    epochs: int
    constant_epochs: int
    decay_per_epoch: float | None
    validate_every_epochs: int
    checkpoint_every_steps: int | None
    reasons: Mapping[str, str]
    intensities: Mapping[str, Mapping[str, float]]

    def settings(self) -> dict[str, Any]:
        """{field of a config: value}."""
        found = {field: getattr(self, line) for line, field in self.FIELDS.items()}
        return found | {self.INTENSITIES: dict(self.intensities) or None}

    def lines(self, fields: Sequence[str]) -> list[dict[str, Any]]:
        """The lines of some fields of a config, each {"field", "value", "reason"} for JSON."""
        rows = [
            {"field": field, "value": getattr(self, line), "reason": self.reasons[line]}
            for line, field in self.FIELDS.items()
            if field in fields
        ]
        return json.loads(json.dumps(rows))


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Lines of text: field, value, and why; of `Plan.lines`."""
    rows = [(line["field"], _shown(line["value"]), line["reason"]) for line in lines]
    first, second = (max(len(row[i]) for row in rows) + 2 for i in (0, 1))
    second = min(second, _VALUES)
    result = []
    for name, value, reason in rows:
        why = textwrap.wrap(reason, _COLUMNS - first - second)
        values = textwrap.wrap(value, second - 2)
        for i in range(max(len(why), len(values))):
            left, middle, right = (
                cell[i] if i < len(cell) else "" for cell in ([name], values, why)
            )
            result.append(f"{left:<{first}}{middle:<{second}}{right}".rstrip())
    return "\n".join(result)


def _shown(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, list):
        return " ".join(_shown(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
