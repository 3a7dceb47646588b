"""Case: its files, its images in memory, and its arrays as prepared for a network."""

import dataclasses
from pathlib import Path

import numpy as np

from crossdim_jax.imaging.nifti import Geometry


@dataclasses.dataclass(frozen=True)
class CaseFiles:
    """Files of one case, before anything is read.

    Attributes:
      id: the case's name, unique in the data root.
      patient: equal for scans of one patient; splits never separate them.
      images: one file per modality in the challenge's order, a single 4-D file, or the slices.
      label: the label map or a folder of its slices, None if there is none.
      kind: what sort of image it is within its challenge, such as a view or a sequence; decides
        what is annotated in it. "" where there is one sort.
    """

    id: str
    patient: str
    images: tuple[Path, ...]
    label: Path | None
    kind: str = ""


@dataclasses.dataclass
class Case:
    """Case in memory.

    Attributes:
      id, patient, kind: as in `CaseFiles`.
      image: (z, y, x, c) float32, the file's intensities, LPS orientation. Where images do not
        lie in a patient: (frame, row, column, c), a single image has one frame.
      label: (z, y, x) uint8 in the label convention of the files, or None.
      spacing_mm: (z, y, x).
      geometry: of the first image file; to write a result onto the case's own grid.
    """

    id: str
    patient: str
    image: np.ndarray
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    geometry: Geometry
    kind: str = ""


# (start, stop) of each spatial axis: (z, y, x), half open.
BBox = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclasses.dataclass
class Prepared:
    """Case as prepared for a network.

    Attributes:
      image: (z, y, x, c) float32, z-scored.
      label: (z, y, x) uint8 on the same grid, or None.
      bbox: where the image lay in the full volume.
      full_shape: (z, y, x) of the full volume.
      spacing_mm: (z, y, x) of the full volume.
      kind: as in `CaseFiles`.
      note: what a user should know of how it was prepared; "" for nothing.
    """

    image: np.ndarray
    label: np.ndarray | None
    bbox: BBox
    full_shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    kind: str = ""
    note: str = ""
