"""What differs from one challenge to the next: files, meaning of labels, scores, submission.

A challenge is one class in one file. It says where its cases are (`cases`), reads and checks one
(`load`), translates between label values and the regions a network predicts (`encode`, `decode`),
scores (`score`, `summarise`) and writes a result as its users expect it (`write`). To add one,
write the file and name it in `CHALLENGES`.
"""

import abc
import dataclasses
import importlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.data.images import Geometry
from crossdim_jax.errors import ConfigError

# name -> module, class. Imported on demand: one challenge must not need another's libraries.
CHALLENGES = {
    "brats": ("crossdim_jax.challenges.brats", "BraTS"),
    "phantom": ("crossdim_jax.challenges.phantom", "Phantom"),
}


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """The files of one case; nothing of them has been read yet.

    Attributes:
      id: the case's name, unique in the data root.
      patient: equal for scans of one patient; splits never separate them.
      images: one file per modality in the challenge's order, or a single 4-D file.
      label: the label map, None if there is none.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None


@dataclasses.dataclass
class Case:
    """One case in memory.

    Attributes:
      id, patient: as in `CaseFiles`.
      image: (z, y, x, c) float32, the file's intensities, LPS orientation.
      label: (z, y, x) uint8 in the label convention of the files, or None.
      spacing_mm: (z, y, x).
      geometry: of the first image file, with the dtype of the label file if one was read; to
        write a result onto the case's own grid.
    """

    id: str
    patient: str
    image: np.ndarray
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    geometry: Geometry


class Challenge(abc.ABC):
    """The contract of a challenge.

    Attributes:
      name: as in `CHALLENGES`.
      modalities: the image channels, in order.
      regions: the k regions a network predicts, in order.
      profile: a key of `metrics.PROFILES`: what `score` computes, and the row of a mismatch.
      aggregate: the mode of `metrics.aggregate` that `summarise` uses.
    """

    name: str
    modalities: tuple[str, ...]
    regions: tuple[str, ...]
    profile: str
    aggregate: str

    @abc.abstractmethod
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

    @abc.abstractmethod
    def load(self, files: CaseFiles) -> Case:
        """Reads one case and checks everything that can be checked.

        Raises:
          DataError: a file is missing, unreadable or contradicts another; it is named.
        """

    @abc.abstractmethod
    def encode(self, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Label values (...) -> targets (..., k) uint8 and region weights (k,) float32."""

    @abc.abstractmethod
    def decode(
        self,
        probabilities: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        threshold: float = 0.5,
    ) -> np.ndarray:
        """Probabilities (z, y, x, k) -> label (z, y, x) uint8 in the convention of the files."""

    @abc.abstractmethod
    def score(
        self,
        truth_label: np.ndarray,
        predicted_label: np.ndarray,
        spacing_mm: Sequence[float],
    ) -> dict[str, float]:
        """The official scores of one case, such as {"dice_WT": ..., "hd95_WT": ...}."""

    @abc.abstractmethod
    def summarise(self, rows: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
        """Rows of `score` -> {"dice_WT": {"mean", "sd", "median", "q25", "q75", "n"}, ...}."""

    @abc.abstractmethod
    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """Writes a label (z, y, x) on the grid of `geometry` as the challenge stores labels.

        In the case's own integer type (`geometry.label_dtype`), without intensity scaling.
        """

    @abc.abstractmethod
    def fingerprint(self) -> dict[str, object]:
        """JSON-able; differs whenever `load` or the meaning of the labels would differ."""


def get(name: str, **kwargs: object) -> Challenge:
    """The challenge of that name, configured.

    Args:
      name: a key of `CHALLENGES`.
      **kwargs: the arguments of its class.

    Raises:
      ConfigError: unknown name or argument; the known ones are listed.
    """
    if name not in CHALLENGES:
        raise ConfigError(f"unknown challenge {name!r}; known: {', '.join(sorted(CHALLENGES))}")
    module, attribute = CHALLENGES[name]
    kind = getattr(importlib.import_module(module), attribute)
    known = list(inspect.signature(kind).parameters)
    if unknown := sorted(set(kwargs) - set(known)):
        raise ConfigError(
            f"challenge {name!r} has no setting {', '.join(unknown)}; known: {', '.join(known)}"
        )
    return kind(**kwargs)
