"""Plan of a training, each line a value and its reason: as a table, a record, and settings."""

import dataclasses
import json
import textwrap
from collections.abc import Mapping
from typing import Any, ClassVar

_COLUMNS = 100
_VALUES = 28  # of them, at most, for the values


@dataclasses.dataclass(frozen=True)
class Plan:
    """Plan of a training.

    Attributes:
      spacing_mm: (z, y, x) to which volumes are resampled; None: they are not.
      normalisation: a scheme for each channel, see `imaging.normalise`.
      depth_kernels, depth_strides: of the encoder, None: as in the plane; for them to take effect
        weights are ported with the same numbers.
      patch: (z, y, x), or (y, x) to which slices are resized.
      batch_size: patches or slices of a step.
      epochs: of the training cases, or their slices.
      reasons: {line: why}.
      intensities: of the foreground, for "ct", see `Fingerprint.intensities`.
    """

    LINES: ClassVar = (
        "spacing_mm",
        "normalisation",
        "patch",
        "depth_kernels",
        "depth_strides",
        "batch_size",
        "epochs",
    )

    spacing_mm: tuple[float, ...] | None
    normalisation: tuple[str, ...]
    patch: tuple[int, ...]
    depth_kernels: tuple[int, ...] | None
    depth_strides: tuple[int, ...] | None
    batch_size: int
    epochs: int
    reasons: Mapping[str, str]
    intensities: Mapping[str, Mapping[str, float]]

    def table(self) -> str:
        """Lines of text: what, its value, and why."""
        rows = [(name, _shown(getattr(self, name)), self.reasons[name]) for name in self.LINES]
        first, second = (max(len(row[i]) for row in rows) + 2 for i in (0, 1))
        second = min(second, _VALUES)
        lines = []
        for name, value, reason in rows:
            why = textwrap.wrap(reason, _COLUMNS - first - second)
            values = textwrap.wrap(value, second - 2)
            for i in range(max(len(why), len(values))):
                left, middle, right = (
                    cell[i] if i < len(cell) else "" for cell in ([name], values, why)
                )
                lines.append(f"{left:<{first}}{middle:<{second}}{right}".rstrip())
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """JSON object of the plan, for a run's folder."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def settings(self) -> dict[str, Any]:
        """{field of a config: value}."""
        return {
            "challenge.spacing_mm": self.spacing_mm,
            "challenge.normalisation": self.normalisation,
            "challenge.intensities": dict(self.intensities) or None,
            "data.patch": self.patch,
            "model.depth_kernels": self.depth_kernels,
            "model.depth_strides": self.depth_strides,
            "train.batch_size": self.batch_size,
            "train.epochs": self.epochs,
        }


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in value)
    return str(value)
