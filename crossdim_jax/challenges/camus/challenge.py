"""CAMUS: the left heart in echocardiograms; contours in two views, volumes, ejection fraction."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crossdim_jax.challenges.base import Evaluated, Table
from crossdim_jax.challenges.camus import layouts, tables, volumes
from crossdim_jax.challenges.camus.volumes import Measured
from crossdim_jax.challenges.slices import SliceChallenge
from crossdim_jax.errors import DataError, check_name
from crossdim_jax.imaging import grid, metaimage, nifti
from crossdim_jax.imaging.case import Case, CaseFiles
from crossdim_jax.imaging.nifti import Geometry

if TYPE_CHECKING:  # prediction alone needs no matplotlib
    from matplotlib.figure import Figure

PROFILES = {"pooled": "camus", "masd": "camus_masd"}
# Contour -> colour, as in the paper's Figures 3 and 8.
COLOURS = {"LVepi": "#3f8cff", "LVendo": "#ff3b30", "LA": "#2fbf4f"}


class Camus(SliceChallenge):
    """CAMUS in its NIfTI and its old release, and any other echocardiograms for prediction.

    Labels are 0 background, 1 cavity of the left ventricle, 2 myocardium, 3 left atrium. A still is
    an image of one frame; arrays are (frame, row, column).

    Args:
      size: (row, column) of what the network sees.
      frames: which images train and are scored, a key of `layouts.FRAMES`: "stills" (ED and
        ES) or "half_sequence".
      mad: "pooled" or "masd": which mean the mean absolute distance is, see `metrics.camus.MAD`.

    Raises ConfigError if a setting is unknown.
    """

    name = "camus"
    modalities = ("US",)
    classes = ("background", "LV", "MYO", "LA")
    values = (0, 1, 2, 3)
    regions = ("LVendo", "LVepi", "LA")
    contents = ((1,), (1, 2), (3,))
    aggregate = "clean"
    outline = True

    def __init__(
        self, size: Sequence[int] = (256, 256), frames: str = "stills", mad: str = "pooled"
    ):
        super().__init__(size)
        check_name("frames", frames, layouts.FRAMES)
        check_name("mad", mad, PROFILES)
        self.frames = frames
        self.profile = PROFILES[mad]
        self._measured: dict[object, Measured] = {}

    def scan(self, root: Path, *, labelled: bool) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
        """See `Challenge.scan`. Faulty are patients: one without all its images is left out."""
        return layouts.find(root, frames=self.frames, labelled=labelled)

    def load(self, files: CaseFiles) -> Case:
        """See `Challenge.load`. A label lies on the grid of its image, see `imaging.grid`."""
        (path,) = files.images
        image, geometry = _read(path)
        grid.check_orthogonal(geometry, self.grid_tolerance_mm)
        label = None
        if files.label is not None:
            label, of_label = self.read_prediction(files.label)
            if label.shape != image.shape:
                raise DataError(
                    f"{files.label}: has {_size(label)}, but its image {path} has {_size(image)}; "
                    "a label lies on the grid of its image"
                )
            grid.check_same(geometry, of_label, self.grid_tolerance_mm)
            self.check_label(files.label, label)
        with np.errstate(over="ignore"):
            image = np.ascontiguousarray(image, np.float32)[..., None]
        nifti.check_finite(image, str(path))
        return Case(
            files.id, files.patient, image, label, geometry.spacing_mm, geometry, files.kind
        )

    def groups(self, files: CaseFiles) -> tuple[str, ...]:
        """See `Challenge.groups`: the phase, and the image quality that the cfg states."""
        if not files.kind:
            return ()
        quality = layouts.info_of(files).quality
        phase = files.kind.partition("_")[2]
        return (phase, *([f"Image quality {quality}"] if quality else []))

    def tables(self, evaluated: Sequence[Evaluated]) -> list[Table]:
        """See `Challenge.tables`: Table 2, contours; Table 3, volumes; all patients."""
        if not any(case.files.kind for case in evaluated):
            return []  # images without a view and a phase
        truth, prediction, clinical = self._volumes(evaluated)
        groups = [self.groups(case.files) for case in evaluated]
        return [
            tables.contours(evaluated, groups, self.regions),
            tables.agreement(truth, prediction, clinical),
            tables.patients(truth, prediction, clinical),
        ]

    def figures(self, evaluated: Sequence[Evaluated]) -> list[tuple[str, "Figure", str]]:
        """See `Challenge.figures`: Figure 3 for the median patient; EF, EDV and ESV as plots."""
        from crossdim_jax.challenges.camus import figures  # matplotlib, for these alone

        truth, prediction, _ = self._volumes(evaluated)
        made = [figures.phases(self, evaluated), figures.volumes(truth, prediction)]
        return [figure for figure in made if figure is not None]

    def layers(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
        """See `Challenge.layers`."""
        masks = dict(zip(self.regions, np.moveaxis(self.masks(label), -1, 0), strict=True))
        return {name: (masks[name], colour) for name, colour in COLOURS.items()}

    def read_prediction(self, path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
        """See `Challenge.read_prediction`: NIfTI or MHD, (frame, row, column)."""
        if str(path).endswith(".mhd"):
            return metaimage.read_mhd_label(path)
        label, geometry = nifti.read_label(path, reorient=False)
        return np.ascontiguousarray(label), geometry

    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """See `Challenge.write`."""
        self.check_label(Path(path), label)
        return nifti.write_nifti(path, label, geometry, np.min_scalar_type(max(self.values)))

    def export(
        self, folder: Path, files: CaseFiles, label: np.ndarray, geometry: Geometry
    ) -> list[Path]:
        """See `Challenge.export`: `mhd/{case}.mhd`, as the challenge's platform takes it."""
        return [metaimage.write_mhd(folder / "mhd" / f"{files.id}.mhd", label, geometry, np.uint8)]

    def export_all(self, folder: Path, predicted: Sequence[tuple[CaseFiles, Path]]) -> list[Path]:
        """See `Challenge.export_all`: `patients.csv`, volumes and EF; `films.csv`, areas."""
        paths = []
        if patients := volumes.by_patient(predicted):
            measured = {name: self._measure(name, items) for name, items in patients.items()}
            paths.append(volumes.write_patients(folder / "patients.csv", measured))
        still = tuple(f"_{phase}" for phase in layouts.STILLS)
        if films := [pair for pair in predicted if not pair[0].kind.endswith(still)]:
            paths.append(volumes.write_films(folder / "films.csv", films, self.read_prediction))
        return paths

    def official_split(self, root: str | os.PathLike, *, fold: int = 0) -> dict[str, list[str]]:
        """See `Challenge.official_split`: `database_split/subgroup_*.txt`."""
        del fold
        return layouts.subgroups(Path(root))

    @classmethod
    def make_phantoms(cls, root: str | os.PathLike, n: int, **recipe: object) -> Path:
        """See `Challenge.make_phantoms` and `phantom.ensure`."""
        from crossdim_jax.challenges.camus import phantom  # only demos need it

        return phantom.ensure(root, n, **recipe)

    def fingerprint(self) -> dict[str, object]:
        """See `Challenge.fingerprint`."""
        return {
            "challenge": self.name,
            "size": list(self.size),
            "statistics": self.statistics,
            **self.grid_fingerprint(),
        }

    def _volumes(self, evaluated: Sequence[Evaluated]) -> tuple[dict, dict, dict]:
        """Volumes by patient: from the truth, from predictions, and as the cfgs say."""
        usable = [case for case in evaluated if not case.note]
        truth = volumes.by_patient([(case.files, case.files.label) for case in evaluated])
        found = volumes.by_patient([(case.files, case.prediction) for case in usable])
        return (
            {name: self._measure(name, items) for name, items in truth.items()},
            {name: self._measure(name, items) for name, items in found.items()},
            {n: volumes.clinical([files for files, _ in i]) for n, i in truth.items()},
        )

    def _measure(self, patient: str, items: Sequence[tuple[CaseFiles, Path]]) -> Measured:
        """`volumes.measure`, once for the same files: tables and figures both ask."""
        key = tuple((files.kind, path, path.stat().st_mtime_ns) for files, path in items)
        if key not in self._measured:
            self._measured[key] = volumes.measure(patient, items, self.read_prediction)
        return self._measured[key]


def _size(array: np.ndarray) -> str:
    frames, rows, columns = array.shape
    return f"{columns} x {rows} pixels" + (f" in {frames} frames" if frames > 1 else "")


def _read(path: Path) -> tuple[np.ndarray, Geometry]:
    """Reads an image (frame, row, column), MHD or NIfTI."""
    if path.name.endswith(".mhd"):
        return metaimage.read_mhd(path)
    return nifti.read_nifti(path, reorient=False)
