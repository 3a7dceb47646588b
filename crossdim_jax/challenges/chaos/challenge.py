"""CHAOS: liver in CT; liver, kidneys and spleen in MR; five tasks, one network for all."""

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from crossdim_jax import metrics
from crossdim_jax.challenges.base import Evaluated, Table
from crossdim_jax.challenges.chaos import layouts, mask_files, submission, tables
from crossdim_jax.challenges.slices import SliceChallenge
from crossdim_jax.errors import ConfigError, check_name
from crossdim_jax.imaging import dicom, grid, nifti, preprocess
from crossdim_jax.imaging.case import Case, CaseFiles, Prepared
from crossdim_jax.imaging.dicom_seg import Segment
from crossdim_jax.imaging.nifti import Geometry

if TYPE_CHECKING:  # prediction alone needs no matplotlib
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

FORMATS = ("png", "seg")
# In the colours of Figures 9 and 10 of the paper.
_SEGMENTS = (
    Segment("liver", "Liver", "#e8352e"),
    Segment("right kidney", "Kidney", "#f7d23e", "Right"),
    Segment("left kidney", "Kidney", "#3f7fe0", "Left"),
    Segment("spleen", "Spleen", "#3fb24f"),
)


class Chaos(SliceChallenge):
    """CHAOS from its own folders, see `layouts`.

    A case is one series: "CT_1", "MR_1_T1DUAL_InPhase", "MR_1_T1DUAL_OutPhase", "MR_1_T2SPIR". Both
    phases of T1DUAL are cases of one patient with the same masks, and a network trains on both; one
    of them, `t1dual`, is the T1DUAL result of the tasks and of a submission. Labels are numbers of
    organs in the order of `regions`, from 1.

    In CT only the liver is annotated: there kidneys and spleen have weight 0 and count as
    background, in the loss and in predictions.

    Args:
      size: (y, x) of what the network sees.
      t1dual: "InPhase" or "OutPhase". A patient with one phase only is judged by that.
      statistics: "slice": each slice is z-scored by itself, as a 2D network's sample (Messaoudi et
        al. 2023, Sect. 2.1.1); "volume": all slices of a series alike.
      keep_largest: of each predicted organ only the largest connected piece is kept.
      formats: what a new case's prediction is written as besides NIfTI: "png", the submission's
        folders; "seg", a DICOM segmentation (needs highdicom).
      kind: of series and volumes outside the layout, see `layouts.find`.
      aggregate: see `metrics.aggregate`.
      deidentify: DICOM segmentations are written without what the series says of patient and study,
        see `dicom_seg.write`.
    """

    name = "chaos"
    modalities = ("image",)
    regions = tuple(segment.name for segment in _SEGMENTS)
    classes = ("background", *regions)
    values = (0, 1, 2, 3, 4)
    contents = ((1,), (2,), (3,), (4,))
    profile = "chaos"
    sides = (("right kidney", "left kidney"),)

    def __init__(
        self,
        size: Sequence[int] = (512, 512),
        t1dual: str = "InPhase",
        statistics: str = "slice",
        keep_largest: bool = False,
        formats: Sequence[str] = ("png",),
        kind: str = "auto",
        aggregate: str = "clean",
        deidentify: bool = False,
    ):
        super().__init__(size)
        formats = (formats,) if isinstance(formats, str) else tuple(formats)
        check_name("t1dual", t1dual, layouts.PHASES)
        check_name("statistics", statistics, preprocess.STATISTICS)
        check_name("kind", kind, ("auto", *layouts.KINDS))
        check_name("aggregate", aggregate, metrics.MODES)
        for name in formats:
            check_name("formats", name, FORMATS)
        for name, flag in (("keep_largest", keep_largest), ("deidentify", deidentify)):
            if not isinstance(flag, bool):  # of "False", bool() makes True
                raise ConfigError(f"{name} is {flag!r}; expected True or False")
        if "seg" in formats and importlib.util.find_spec("highdicom") is None:
            raise ConfigError(
                "formats has 'seg', which needs highdicom: pip install 'crossdim_jax[seg]', or "
                "leave it out"
            )
        self.t1dual, self.statistics, self.keep_largest = t1dual, statistics, keep_largest
        self.formats, self.kind, self.aggregate = formats, kind, aggregate
        self.deidentify = deidentify

    def annotated(self, kind: str) -> tuple[bool, ...]:
        """See `SliceChallenge.annotated`: background and liver in CT, everything elsewhere."""
        return tuple(name in ("background", "liver") or kind != "CT" for name in self.classes)

    def scan(self, root: Path, *, labelled: bool) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
        """See `Challenge.scan` and `layouts.find`."""
        return layouts.find(root, labelled=labelled, kind=self.kind)

    def load(self, files: CaseFiles) -> Case:
        """See `Challenge.load`: a DICOM series, or one NIfTI volume; and the masks of the former.

        A series of one slice has the thickness that its header gives, see `dicom.Series`.
        """
        series, label = None, None
        if layouts.is_nifti(files.images[0]):
            volume, geometry = nifti.read_nifti(files.images[0])
            grid.check_orthogonal(geometry, self.grid_tolerance_mm)
        else:
            volume, series = dicom.read_series(files.images, tolerance_mm=self.grid_tolerance_mm)
            geometry = series.geometry
            if series.spacing_from != "ImagePositionPatient":
                logger.info(
                    "%s: one slice; its thickness is that of %s", files.id, series.spacing_from
                )
        if files.label is not None:
            masks = mask_files.read(
                layouts.pair(files.images, files.label),
                size=(geometry.shape[1], geometry.shape[0]),
                any_is_liver=files.kind == "CT",
            )
            label = series.to_volume(masks)
        with np.errstate(over="ignore"):
            image = np.ascontiguousarray(volume, np.float32)[..., None]
        nifti.check_finite(image, str(geometry.path))
        geometry = dataclasses.replace(geometry, dtype=np.dtype(np.uint8))
        return Case(
            files.id, files.patient, image, label, geometry.spacing_mm, geometry, files.kind
        )

    def finish(self, probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
        """See `Challenge.finish`. What this kind has no labels of is background, as in the loss."""
        known = np.array(self.annotated(prepared.kind))
        if probabilities.shape[-1] == len(known) and not known.all():
            rest = probabilities[..., ~known].sum(-1)
            probabilities = np.where(known, probabilities, 0)
            probabilities[..., 0] += rest
        label = super().finish(probabilities, prepared)
        return largest_pieces(label) if self.keep_largest else label

    def tables(self, evaluated: Sequence[Evaluated]) -> list[Table]:
        """See `Challenge.tables`: Table 4 of the paper, and one row for each organ."""
        return tables.tables(evaluated, self.regions, self.t1dual)

    def figures(self, evaluated: Sequence[Evaluated]) -> list[tuple[str, "Figure", str]]:
        """See `Challenge.figures`: best, median and worst case of each organ."""
        from crossdim_jax.challenges.chaos import figures  # matplotlib, for these alone

        return figures.figures(self, evaluated)

    def layers(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
        """See `Challenge.layers`."""
        return {
            segment.name: (label == value, segment.colour)
            for value, segment in enumerate(_SEGMENTS, 1)
        }

    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """See `Challenge.write`: NIfTI, organs as numbers."""
        return nifti.write_nifti(path, label, geometry, np.uint8)

    def export(
        self, folder: Path, files: CaseFiles, label: np.ndarray, geometry: Geometry
    ) -> list[Path]:
        """See `Challenge.export`: the submission's folders and a DICOM segmentation, by `formats`.

        `submission/Task<k>/...` holds the tasks in which this kind of series is asked for; that of
        an unknown kind is in none. `{case}.seg.dcm` needs a DICOM series.
        """
        del geometry
        written = []
        if "png" in self.formats:
            written += submission.write(folder / "submission", files, label, self.t1dual)
        if "seg" in self.formats:
            path = folder / f"{files.id}.seg.dcm"
            written.append(
                submission.write_seg(path, files, label, _SEGMENTS, deidentify=self.deidentify)
            )
        return written

    def provenance(self) -> dict[str, object]:
        """See `Challenge.provenance`."""
        return {"t1dual_result": self.t1dual, "keep_largest": self.keep_largest}

    @classmethod
    def make_phantoms(cls, root: str | os.PathLike, n: int, **recipe: object) -> Path:
        """See `Challenge.make_phantoms` and `phantom.ensure`."""
        from crossdim_jax.challenges.chaos import phantom  # only demos need it

        return phantom.ensure(root, n, **recipe)

    def fingerprint(self) -> dict[str, object]:
        """See `Challenge.fingerprint`."""
        return {
            "challenge": "chaos",
            "labels": list(self.classes),
            "size": list(self.size),
            "statistics": self.statistics,
            **self.grid_fingerprint(),
        }


def largest_pieces(label: np.ndarray) -> np.ndarray:
    """Label (z, y, x) with only the largest 26-connected piece of each value; the rest is 0."""
    result = np.zeros_like(label)
    everywhere = ndimage.generate_binary_structure(3, 3)
    for value in np.unique(label[label > 0]):
        pieces, _ = ndimage.label(label == value, everywhere)
        sizes = np.bincount(pieces.ravel())[1:]
        result[pieces == 1 + sizes.argmax()] = value
    return result
