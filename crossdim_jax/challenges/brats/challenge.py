"""BraTS: glioma in MR of the brain; whole tumour, tumour core and enhancing tumour."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax import metrics, ranges
from crossdim_jax.challenges.base import Challenge
from crossdim_jax.challenges.brats import layouts
from crossdim_jax.errors import ConfigError, DataError, check_name
from crossdim_jax.imaging import grid, nifti, preprocess
from crossdim_jax.imaging.case import Case, CaseFiles, Prepared
from crossdim_jax.imaging.nifti import Geometry

REGIONS = ("WT", "TC", "ET")
# Tissue -> colour, as in the paper's figures.
COLOURS = {
    "Edema": "#2fbf4f",
    "Enhancing tumour": "#ffd80a",
    "Necrosis / non-enhancing": "#ff3b30",
}


@dataclasses.dataclass(frozen=True)
class Convention:
    """Meaning of the values of a label file.

    Attributes:
      values: all that may occur.
      regions: the values of WT, TC and ET.
      written: the value a predicted voxel gets for WT, TC, ET; the later overwrites the earlier.
    """

    values: tuple[int, ...]
    regions: tuple[tuple[int, ...], ...]
    written: tuple[int, int, int]


# Never told from the values in a file: 4 means two things, and the decathlon swaps 1 and 2.
CONVENTIONS = {
    # 3 = non-enhancing core, 1 = necrosis.
    "2015": Convention((0, 1, 2, 3, 4), ((1, 2, 3, 4), (1, 3, 4), (4,)), (2, 1, 4)),
    # 2017 to 2022.
    "2021": Convention((0, 1, 2, 4), ((1, 2, 4), (1, 4), (4,)), (2, 1, 4)),
    "2023": Convention((0, 1, 2, 3), ((1, 2, 3), (1, 3), (3,)), (2, 1, 3)),
    # 4 = resection cavity, in no region.
    "2024": Convention((0, 1, 2, 3, 4), ((1, 2, 3), (1, 3), (3,)), (2, 1, 3)),
    "msd": Convention((0, 1, 2, 3), ((1, 2, 3), (2, 3), (3,)), (1, 2, 3)),
}


class BraTS(Challenge):
    """BraTS 2015 to 2024 and the decathlon's Task01.

    Args:
      layout: "2020", "2021" (also 2017 to 2019, whose HGG and LGG together are one root), "2023"
        (and later), "msd", "plain", or "auto": from folder names, by the first call of `cases`.
      convention: "2015", "2021" (2017 to 2022), "2023", "2024", "msd", or "auto": follows from the
        layout, where it does. It must be given for "plain", and where "auto" finds the dashed
        names that 2023 and 2024 share.
      modalities: for "plain", the file endings in order. Otherwise a selection of flair, t1,
        t1ce, t2 (None: all); the release's own names (t2f, T1gd, ...) are understood too.
      et_min_mm3: an enhancing tumour smaller than this is written as core. The paper gives no
        number; 200 is our choice.
      aggregate: "clean" or "synapse2022", see `metrics.aggregate`.

    Attributes:
      modalities: for every layout but "plain" in the names flair, t1, t1ce, t2, so that one
        network serves all releases.

    Raises ConfigError if a setting is unknown or two contradict.
    """

    name = "brats"
    classes = regions = REGIONS
    activation = "sigmoid"
    profile = "brats2022"

    def __init__(
        self,
        layout: str = "auto",
        convention: str = "auto",
        modalities: Sequence[str] | None = None,
        et_min_mm3: float = 200.0,
        aggregate: str = "clean",
    ):
        check_name("layout", layout, ("auto", *layouts.LAYOUTS))
        check_name("convention", convention, ("auto", *CONVENTIONS))
        check_name("aggregate", aggregate, metrics.MODES)
        ranges.check("challenge", et_min_mm3=et_min_mm3)
        if layout == "plain" and (convention == "auto" or not modalities):
            raise ConfigError(
                "layout 'plain' says neither what the files nor what the labels are: set "
                f"modalities and convention (one of {', '.join(CONVENTIONS)})"
            )
        self.et_min_mm3 = float(et_min_mm3)
        self.aggregate = aggregate
        self.modalities = _modalities(layout, modalities)
        self._layout = None if layout == "auto" else layout
        self._convention = None if convention == "auto" else convention
        if self._layout and not self._convention:
            self._convention = layouts.LAYOUTS[self._layout].convention

    @property
    def layout(self) -> str:
        """Layout of the files, given or detected."""
        if self._layout is None:
            raise ConfigError("the layout is 'auto' and not known before `cases` has seen a root")
        return self._layout

    @property
    def convention(self) -> str:
        """Label convention, given or following from the layout; a key of `CONVENTIONS`."""
        if self._convention is None:
            raise ConfigError(
                "the label convention is 'auto' and not known before `cases` has seen a root; "
                f"set convention to one of {', '.join(CONVENTIONS)}"
            )
        return self._convention

    def scan(self, root: Path, *, labelled: bool) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
        """See `Challenge.scan`. MSD: imagesTr if `labelled`, else imagesTs where there is one."""
        if self._layout is None:
            self._settle(layouts.detect(root), root)
        names = self._file_names()
        cases, faulty = layouts.find(root, self.layout, names, labelled=labelled)
        every = [*(case.id for case in cases), *(case for case, _ in faulty)]
        layouts.check_tasks(every, self.layout, self.convention, root, labelled=labelled)
        return cases, faulty

    def load(self, files: CaseFiles) -> Case:
        """See `Challenge.load`. An image with a channel of zeros only is an error.

        All files of a case lie on one grid with axes at right angles, see `imaging.grid`.
        """
        if self.layout == "msd":
            image, geometry = self._load_4d(files.images[0])
        else:
            image, geometry = self._load_3d(files.images)
        grid.check_orthogonal(geometry, self.grid_tolerance_mm)
        label = None
        if files.label is not None:
            label, label_geometry = nifti.read_label(files.label)
            grid.check_same(geometry, label_geometry, self.grid_tolerance_mm)
            label = np.ascontiguousarray(label)
            self.check_label(files.label, label)
        return Case(files.id, files.patient, image, label, geometry.spacing_mm, geometry)

    def prepare(self, case: Case) -> Prepared:
        """See `Challenge.prepare`: the brain, each modality z-scored over it."""
        return preprocess.brain(case, self.modalities)

    def finish(self, probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
        """See `Challenge.finish`: `decode`, put back into the full volume."""
        label = self.decode(probabilities, prepared.spacing_mm)
        return preprocess.uncrop(label, prepared.bbox, prepared.full_shape)

    def encode(self, label: np.ndarray, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
        """See `Challenge.encode`. Every voxel of BraTS is labelled: all weights are 1."""
        del kind
        table = np.zeros((256, len(self.regions)), np.uint8)
        for channel, values in enumerate(CONVENTIONS[self.convention].regions):
            table[list(values), channel] = 1
        return table[label], np.ones(len(self.regions), np.float32)

    def masks(self, label: np.ndarray) -> np.ndarray:
        """See `Challenge.masks`: what the network predicts is what is scored."""
        return self.encode(label)[0].astype(bool)

    def layers(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
        """See `Challenge.layers`: WT without TC, ET, and TC without ET."""
        whole, core, enhancing = np.moveaxis(self.masks(label), -1, 0)
        parts = (whole & ~core, enhancing, core & ~enhancing)
        return {
            name: (mask, colour)
            for (name, colour), mask in zip(COLOURS.items(), parts, strict=True)
        }

    def decode(
        self,
        probabilities: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        threshold: float = 0.5,
    ) -> np.ndarray:
        """Label (z, y, x) uint8, in the convention of the files, of probabilities (z, y, x, 3).

        In turn WT, TC, ET; an ET below `et_min_mm3` becomes core.

        Source: Messaoudi et al. 2023, post-processing of the BraTS experiments.
        """
        if probabilities.shape[-1] != len(self.regions):
            raise ValueError(
                f"probabilities have {probabilities.shape[-1]} channels, expected {self.regions}"
            )
        if not np.isfinite(probabilities).all():
            raise DataError("the network's probabilities contain NaN or infinity")
        whole, core, enhancing = CONVENTIONS[self.convention].written
        above = probabilities > threshold
        label = np.zeros(probabilities.shape[:-1], np.uint8)
        label[above[..., 0]] = whole
        label[above[..., 1]] = core
        small = above[..., 2].sum() * float(np.prod(spacing_mm)) < self.et_min_mm3
        label[above[..., 2]] = core if small else enhancing
        return label

    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """See `Challenge.write`."""
        self.check_label(Path(path), label)
        values = CONVENTIONS[self.convention].values
        return nifti.write_nifti(path, label, geometry, np.min_scalar_type(max(values)))

    def provenance(self) -> dict[str, object]:
        """See `Challenge.provenance`."""
        return {"et_min_mm3": self.et_min_mm3}

    def fingerprint(self) -> dict[str, object]:
        """See `Challenge.fingerprint`. The layout is not in it: the files themselves tell."""
        return {
            "challenge": "brats",
            "modalities": list(self.modalities),
            "convention": self.convention,
            "regions": list(self.regions),
            **self.grid_fingerprint(),
        }

    def _settle(self, layout: str, root: Path) -> None:
        if self._convention is None:
            if layout == "2023":
                raise ConfigError(
                    f"{root}: the names are those of BraTS 2023 and 2024, whose labels differ (4 "
                    "is a resection cavity in 2024): set convention to '2023' or '2024'"
                )
            self._convention = layouts.LAYOUTS[layout].convention
        self._layout = layout

    def _file_names(self) -> tuple[str, ...]:
        """Modalities as the layout's files name them."""
        theirs = layouts.LAYOUTS[self.layout].modalities
        if not theirs:
            return self.modalities
        return tuple(theirs[layouts.MODALITIES.index(name)] for name in self.modalities)

    def _load_3d(self, paths: Sequence[Path]) -> tuple[np.ndarray, Geometry]:
        """Stacks one file per channel: (z, y, x, c) float32, and the first one's geometry."""
        image, first = None, None
        for channel, path in enumerate(paths):
            volume, geometry = nifti.read_nifti(path)
            if image is None:
                first = geometry
                image = np.empty((*volume.shape, len(paths)), np.float32)
            grid.check_same(first, geometry, self.grid_tolerance_mm)
            _fill(image, channel, volume, str(path))
        return image, first

    def _load_4d(self, path: Path) -> tuple[np.ndarray, Geometry]:
        everything, geometry = nifti.read_nifti(path, ndim=4)
        expected = layouts.LAYOUTS["msd"].modalities
        if everything.shape[-1] != len(expected):
            raise DataError(
                f"{path}: has {everything.shape[-1]} channels, expected {len(expected)}: "
                + ", ".join(expected)
            )
        image = np.empty((*everything.shape[:3], len(self.modalities)), np.float32)
        for channel, name in enumerate(self.modalities):
            source = layouts.MODALITIES.index(name)
            _fill(image, channel, everything[..., source], f"{path} (channel {source}, {name})")
        return image, geometry

    def check_label(self, path: Path, label: np.ndarray) -> None:
        """See `Challenge.check_label`."""
        counts = np.bincount(label.ravel(), minlength=1)
        allowed = CONVENTIONS[self.convention].values
        wrong = {int(v): int(counts[v]) for v in np.flatnonzero(counts) if v not in allowed}
        if wrong:
            listed = ", ".join(f"{value} ({count} voxels)" for value, count in wrong.items())
            raise DataError(
                f"{path}: holds label {listed}; convention {self.convention!r} has only "
                f"{', '.join(map(str, allowed))}. If the file is right, the convention is "
                f"another: {', '.join(CONVENTIONS)}"
            )


def _modalities(layout: str, chosen: Sequence[str] | None) -> tuple[str, ...]:
    if chosen is None:
        return layouts.MODALITIES
    chosen = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if len(set(chosen)) != len(chosen) or not chosen:
        raise ConfigError(f"modalities are {chosen}; expected one or more different names")
    if layout == "plain":
        return chosen
    ours = {
        theirs.lower(): name
        for known in layouts.LAYOUTS.values()
        for theirs, name in zip(known.modalities, layouts.MODALITIES, strict=False)
    }
    if unknown := [name for name in chosen if name.lower() not in ours]:
        raise ConfigError(f"unknown modalities {', '.join(unknown)}; known: {', '.join(ours)}")
    return tuple(ours[name.lower()] for name in chosen)


def _fill(image: np.ndarray, channel: int, volume: np.ndarray, what: str) -> None:
    """Copies one volume into its channel; raises DataError for what no image of a brain holds."""
    with np.errstate(over="ignore"):
        image[..., channel] = volume
    nifti.check_finite(image[..., channel], what)
    if not image[..., channel].any():
        raise DataError(f"{what}: every voxel is zero, the image is empty")
