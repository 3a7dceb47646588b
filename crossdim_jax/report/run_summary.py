"""Run as a column of a comparison: content of its folder, and cost of its training."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from crossdim_jax.errors import DataError
from crossdim_jax.report.reading import CASES, SUMMARY, read_cases, read_metrics, read_summary
from crossdim_jax.storage.files import duration
from crossdim_jax.storage.run_folder import CONFIG, METRICS, read_config, read_cost
from crossdim_jax.text import shown, without_folders

logger = logging.getLogger(__name__)


class Run:
    """Content of a run folder, or of a cross-validation's with a run for each fold."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.damaged: list[str] = []  # what is there and cannot be used, and why
        if not os.path.lexists(folder / CONFIG):
            raise DataError(
                f"{folder / CONFIG}: not found; a comparison is of run folders, such as "
                "--workdir=runs/dsnet,runs/dxnet"
            )
        self.config = self._read(lambda: read_config(folder), {})
        self.summary: dict[str, Any] = self._read(lambda: read_summary(folder / SUMMARY), {})
        folds = sorted(folder.glob("fold_*"), key=lambda path: (len(path.name), path.name))
        self.trained = folds or [folder]
        costs = [self._read(lambda path=path: read_cost(path), {}) for path in self.trained]
        self.measured = [cost for cost in costs if cost]
        logs = [
            self._read(lambda path=path: read_metrics(path / METRICS), ([], [], 0))
            for path in self.trained
        ]
        self.logs = [log for log, _, _ in logs if log]
        cases = self._read(lambda: read_cases(folder / CASES), [])
        self.case_ids: list[str] = sorted(row["id"] for row in cases)
        self.definitions: dict[str, str] = self.summary.get("definitions", {})
        self.regions: list[str] = self.summary.get("regions", [])
        self.provenance: dict[str, Any] = self.summary.get("provenance", {})

    def statistic(self, metric: str, region: str, kind: str) -> float | None:
        """Statistic of a metric in a region; None if there is none."""
        return self.summary.get("statistics", {}).get(f"{metric}_{region}", {}).get(kind)

    def field(self, name: str) -> Any:
        """Field of the config by its dotted name; None if there is none."""
        found = self.config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def cost(self, name: str) -> list[Any]:
        """Recorded cost, of each training that has it."""
        return [found[name] for found in self.measured if name in found]

    def last(self, name: str) -> list[Any]:
        """Value in the last line that each training logged."""
        return [log[-1][name] for log in self.logs if log[-1].get(name) is not None]

    def _read(self, read: Callable[[], Any], without: Any) -> Any:
        try:
            return read()
        except DataError as error:
            logger.warning("left out of the comparison: %s", shown(str(error)))
            self.damaged.append(without_folders(str(error), [self.folder / "any"]))
            return without


def _network(run: Run) -> str | None:
    parts = (run.field(f"model.{name}") for name in ("name", "variant", "encoder"))
    return " ".join(str(part) for part in parts if part) or None


def _batch(run: Run) -> str | None:
    size, parts = run.field("train.batch_size"), run.field("train.accumulate") or 1
    return None if size is None else f"{size}" + (f" in {parts} parts" if parts > 1 else "")


def _device(run: Run) -> str | None:
    kinds, numbers = run.cost("device"), run.cost("devices")
    return f"{max(numbers, default=1)} x {kinds[0]}" if kinds else None


def _seconds_per_image(run: Run) -> float | None:
    speeds = [row["images_per_s"] for log in run.logs for row in log if row.get("images_per_s")]
    return float(1 / np.median(speeds)) if speeds else None


def _patch(run: Run) -> str | None:
    return " x ".join(map(str, run.field("data.patch") or ())) or None


def _largest(name: str) -> Callable[[Run], Any]:
    return lambda run: max(run.cost(name), default=None)


def _sum(name: str) -> Callable[[Run], Any]:
    return lambda run: sum(run.last(name)) or None


# Column of the CSV -> title, value of a run (None if unknown), and how it is printed. Of a
# cross-validation steps and seconds are those of all folds together.
FACTS: dict[str, tuple[str, Callable[[Run], Any], Callable[[Any], str]]] = {
    "network": ("Network", _network, str),
    "trainings": ("Trainings (folds)", lambda run: len(run.trained), str),
    "parameters": (
        "Parameters",
        _largest("parameters"),
        "{:,}".format,
    ),
    "patch": ("Patch", _patch, str),
    "batch": ("Batch", _batch, str),
    "dtype": ("Compute type", lambda run: run.field("model.dtype"), str),
    "device": ("Devices", _device, str),
    "steps": ("Steps", _sum("step"), "{:,}".format),
    "seconds": ("Training time", _sum("seconds"), duration),
    "seconds_per_image": (
        "Training time per image (s, median)",
        _seconds_per_image,
        "{:.3g}".format,
    ),
    "peak_memory_mb": (
        "Peak memory (MB)",
        _largest("peak_memory_mb"),
        "{:,.0f}".format,
    ),
    "cases": ("Cases evaluated", lambda run: run.summary.get("n_cases"), str),
}
# Those without which time and memory do not compare.
CONDITIONS = ("patch", "batch", "dtype", "device")
