"""Base class of challenges, and the records of their evaluation."""

import abc
import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from crossdim_jax import metrics
from crossdim_jax.errors import ConfigError, ManyErrors
from crossdim_jax.imaging import nifti
from crossdim_jax.imaging.case import Case, CaseFiles, Prepared
from crossdim_jax.imaging.nifti import Geometry

if TYPE_CHECKING:  # workers that only read cases need no matplotlib
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Scored case.

    Attributes:
      files: of the case, with a label.
      row: result of `Challenge.score`.
      prediction: its file, as `Challenge.read_prediction` reads it.
      note: why the prediction was scored as a mismatch; "" if it was not.
    """

    files: CaseFiles
    row: Mapping[str, float]
    prediction: Path
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Table:
    """Table over all cases, beside that of the single scores.

    Attributes:
      name: of its file, `evaluation/{name}.csv`.
      title: above it.
      columns: headings; the first column names the rows.
      rows: text, numbers, or None for what is not known.
      notes: below it: definitions, and what is missing and why.
      shown: False for one that is only a file: too long for a page.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]
    notes: tuple[str, ...] = ()
    shown: bool = True


class Challenge(abc.ABC):
    """Base class of challenges.

    Attributes:
      name: as in `CHALLENGES`.
      modalities: the image channels, in order.
      classes: the k channels a network predicts, in order; under "softmax" the first is the
        background.
      activation: how logits become probabilities: "sigmoid", each class by itself, or "softmax".
      regions: the r structures that are scored and drawn; they may overlap.
      profile: a key of `metrics.PROFILES`: what `score` computes, and the row of a mismatch.
      aggregate: the mode of `metrics.aggregate` that `summarise` uses.
      outline: True if figures draw contours rather than filled areas.
      sides: pairs of classes that are the right and the left one of an organ. Mirrored along the
        last axis (x) one looks like the other, so such flips are refused, see `check_flips`.
      absent_scores: whether a class that is absent in truth and prediction of a case scores Dice 1
        when the best weights are chosen; False: it is left out there.
      grid_tolerance_mm: how far a voxel of one file may lie from the same voxel of another file of
        the case, see `imaging.grid`; None for a twentieth of a voxel. Set by `experiment.build`.
      ignore: label value of voxels that nobody annotated; None where there is none.
      settings: what it was built with: its name, and the arguments of its class. Set by
        `challenges.get`.
    """

    name: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    activation: str
    regions: tuple[str, ...]
    profile: str
    aggregate: str
    outline: bool = False
    absent_scores: bool = True
    grid_tolerance_mm: float | None = None
    sides: tuple[tuple[str, str], ...] = ()
    ignore: int | None = None
    settings: Mapping[str, object] = MappingProxyType({})

    def record(self) -> dict[str, object]:
        """Values, JSON-able, from which `challenges.of_record` builds the same on any machine.

        They say all that lies between files and a network, and between it and a result.
        """
        return {**self.settings, "grid_tolerance_mm": self.grid_tolerance_mm}

    def check_flips(self, axes: Sequence[int], ndim: int, field: str) -> None:
        """Raises ConfigError if a flip would make an organ that of the other side.

        Args:
          axes: that are flipped, of `ndim` spatial ones; the last runs from right to left.
          field: of the config that says so.
        """
        x = ndim - 1
        if not self.sides or x not in axes:
            return
        pairs = "; ".join(" and ".join(pair) for pair in self.sides)
        names = dict(zip(range(x, -1, -1), ("x", "y", "z"), strict=False))
        others = tuple(axis for axis in axes if axis != x)
        raise ConfigError(
            f"config.{field} flips along axis {x} (x, from the patient's right to the left), which "
            f'makes one of the other of these classes: {pairs}. Use "--config.{field}={others}" '
            f"(axes here: {', '.join(f'{axis} {name}' for axis, name in sorted(names.items()))})"
        )

    @property
    def foreground(self) -> tuple[str, ...]:
        """Classes that are watched while training: all but a background."""
        return self.classes[1:] if self.activation == "softmax" else self.classes

    def cases(
        self,
        root: str | os.PathLike,
        *,
        labelled: bool,
        errors: list[tuple[str, str]] | None = None,
    ) -> list[CaseFiles]:
        """Finds the cases under `root`, sorted by id, without reading images.

        Args:
          root: folder of cases, or one case's folder.
          labelled: True if every case must have a label; otherwise `label` may be None.
          errors: if given, faulty cases are appended as (id, message) instead of raised.

        Raises:
          DataError: there is no case, or the root does not exist.
          ManyErrors: some cases are faulty; all of them are listed.
        """
        cases, faulty = self.scan(Path(root), labelled=labelled)
        if errors is not None:
            errors.extend(faulty)
        elif faulty:
            raise ManyErrors(f"{root}: cases are faulty; repair or remove them", faulty)
        return cases

    @abc.abstractmethod
    def scan(self, root: Path, *, labelled: bool) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
        """Cases under `root`, sorted by id, and (id, message) of each faulty one; see `cases`.

        Raises DataError if there is no case, or the root does not exist.
        """

    @abc.abstractmethod
    def load(self, files: CaseFiles) -> Case:
        """Reads one case and checks everything that can be checked.

        Raises:
          DataError: a file is missing, unreadable or contradicts another; it is named.
        """

    @abc.abstractmethod
    def prepare(self, case: Case) -> Prepared:
        """Prepares a case for the network; the image is the same with and without a label."""

    @abc.abstractmethod
    def finish(self, probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Postprocesses probabilities (z, y, x, k): label (z, y, x) uint8 on the case's own grid.

        Undoes `prepare`; the label is in the convention of the files.
        """

    @abc.abstractmethod
    def encode(self, label: np.ndarray, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
        """Targets (..., k) uint8 and class weights (k,) float32 of label values (...).

        Targets of int8 are -1 in all classes of a voxel that nobody annotated, see `losses`.

        A weight of 0: that class is not annotated in images of this kind. Its voxels are then
        neither there nor absent but unknown.
        """

    @abc.abstractmethod
    def masks(self, label: np.ndarray) -> np.ndarray:
        """Masks (..., r) bool of label values (...), one channel for each of `regions`."""

    def annotated_regions(self, kind: str) -> tuple[bool, ...]:
        """True for each of `regions` that is annotated in images of a kind; by default all."""
        del kind
        return (True,) * len(self.regions)

    def score(
        self,
        truth_label: np.ndarray,
        predicted_label: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        kind: str = "",
    ) -> dict[str, float]:
        """Row of one case by the profile, such as {"dice_WT": ..., "hd95_WT": ...}.

        Regions that are not annotated in images of this kind are NaN.
        """
        return metrics.PROFILES[self.profile].score(
            self.masks(truth_label),
            self.masks(predicted_label),
            regions=self.regions,
            spacing_mm=spacing_mm,
            annotated=self.annotated_regions(kind),
        )

    def mismatch(
        self, truth_label: np.ndarray, spacing_mm: Sequence[float], *, kind: str = ""
    ) -> dict[str, float]:
        """Row of a case whose prediction is not on its grid."""
        return metrics.PROFILES[self.profile].mismatch(
            truth_label.shape,
            regions=self.regions,
            spacing_mm=spacing_mm,
            annotated=self.annotated_regions(kind),
        )

    def summarise(self, rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Statistics of rows of `score`, see `metrics.aggregate`.

        Returns {"dice_WT": {"mean", "sd", "median", "q25", "q75", "n", "n_nan"}, ...}.
        """
        return metrics.aggregate(rows, mode=self.aggregate)

    def groups(self, files: CaseFiles) -> tuple[str, ...]:
        """Names of the groups that a case belongs to; scores are also summarised for each."""
        del files
        return ()

    def tables(self, evaluated: Sequence[Evaluated]) -> list[Table]:
        """Further tables over all cases, such as one row for each patient."""
        del evaluated
        return []

    def figures(self, evaluated: Sequence[Evaluated]) -> list[tuple[str, "Figure", str]]:
        """Further figures over all cases: name of the file, figure, caption."""
        del evaluated
        return []

    @abc.abstractmethod
    def layers(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
        """Overlays of a label in figures: {name: (mask, colour)}, the later above the earlier."""

    def prediction_path(self, folder: str | os.PathLike, case_id: str) -> Path:
        """Path of a case's prediction."""
        return Path(folder) / f"{case_id}.nii.gz"

    def read_prediction(self, path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
        """Reads a label written by `write`, or by somebody else in its place."""
        return nifti.read_label(path)

    def check_label(self, path: Path, label: np.ndarray) -> None:
        """Raises DataError, naming the file, if a label holds values that mean nothing here."""
        del path, label

    @abc.abstractmethod
    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """Writes a label (z, y, x) on the grid of `geometry` as the challenge stores labels.

        In the smallest unsigned integer type that holds the challenge's label values, without
        intensity scaling.
        """

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Label values of each region, where a rule for its largest component may be looked for.

        Empty for challenges with a postprocessing of their own.
        """
        return {}

    def description_record(self) -> dict[str, object] | None:
        """JSON object that a later prediction needs to know of the data set; None: nothing."""
        return None

    def provenance(self) -> dict[str, object]:
        """Settings of the postprocessing, for the record beside the scores; plain values."""
        return {}

    def export(
        self, folder: Path, files: CaseFiles, label: np.ndarray, geometry: Geometry
    ) -> list[Path]:
        """Writes a new case's prediction in further formats, such as that of a submission."""
        del folder, files, label, geometry
        return []

    def export_all(self, folder: Path, predicted: Sequence[tuple[CaseFiles, Path]]) -> list[Path]:
        """Writes what follows only from all new cases together, such as a table of patients."""
        del folder, predicted
        return []

    def official_folds(self, root: str | os.PathLike) -> int:
        """Number of folds of the official split; 0: it is none of folds.

        Raises DataError if the split's files cannot be used.
        """
        del root
        return 0

    def official_split(self, root: str | os.PathLike, *, fold: int = 0) -> dict[str, list[str]]:
        """Official lists of patients: {"training", "validation", "testing"}.

        fold: which of its `official_folds`; the only split that there is knows none.
        Raises ConfigError if the challenge has none, DataError if its files cannot be used.
        """
        del root, fold
        raise ConfigError(
            f"challenge {self.name!r} has no official split; set split.kind to holdout or kfold"
        )

    @classmethod
    def make_phantoms(cls, root: str | os.PathLike, n: int, **recipe: object) -> Path:
        """Ensures that `root` holds n phantoms of this challenge's kind; for demos."""
        raise ConfigError(f"challenge {cls.name!r} has no phantoms; remove config.phantoms")

    def grid_fingerprint(self) -> dict[str, object]:
        """Part of `fingerprint` that says which grids are one; nothing by default."""
        given = self.grid_tolerance_mm
        return {} if given is None else {"grid_tolerance_mm": given}

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, object]:
        """Key of derived files, JSON-able: differs whenever `load` or the label values would."""
