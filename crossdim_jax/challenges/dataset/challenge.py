"""A data set of one's own as a challenge: what its dataset.json says, and scores for any labels."""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crossdim_jax import metrics
from crossdim_jax.challenges.base import Challenge, Evaluated, Table
from crossdim_jax.challenges.dataset import (
    colours,
    description,
    folds,
    labels,
    layouts,
    preparation,
    settings,
)
from crossdim_jax.challenges.dataset import sides as sides_lib
from crossdim_jax.challenges.dataset.description import Channel, Description
from crossdim_jax.challenges.nifti_folders import warn_once
from crossdim_jax.errors import ConfigError, DataError, ManyErrors, check_name
from crossdim_jax.imaging import grid, nifti, preprocess, volume
from crossdim_jax.imaging.case import Case, CaseFiles, Prepared
from crossdim_jax.imaging.geometry import Geometry

_MOST_LABELS = 1000  # values in label files that nobody named: with more, they are images
_LEGEND = 12  # labels that are drawn whether a case has them or not


class Dataset(Challenge):
    """Any data set: nnU-Net's raw folders, the decathlon's, MONAI's datalists, or two folders.

    Args:
      root: of the data; what is read there says channels, labels and cases.
      size: (y, x) to which every slice is brought, for 2D networks; None for volumes.
      file: name of the JSON in `root`.
      spacing_mm: (z, y, x) to which volumes are resampled, see `imaging.spacing`; None: they are
        not.
      normalisation: a scheme for each channel, of `normalise.SCHEMES`, or one for all; None: as
        the channels' names say.
      intensities: for "ct", `normalise.STATISTICS` of the data set's foreground by the number or
        the name of the channel; None: those of each image.
      tolerance_mm: of the normalised surface distance.
      sides: "auto": labels whose names say left or right forbid mirroring; "none": they do not.
      patient: pattern whose first group is the patient in a case's name; "": by the rules of
        `patients.of_case`, or the file patients.json in `root`.
      outside_root: True if files that the JSON lists may lie outside `root`.
      analyze_axes: how the axes of Analyze 7.5 files run, such as "LAS"; "": such files are
        refused, see `imaging.analyze`.
      described: a dataset.json as a mapping or a file, in place of that in `root`: what a network
        was trained with (see `Description.record`).
      aggregate: see `metrics.aggregate`.

    Attributes:
      description: what the data set says of itself, complete.
      fixed: for `described`, where a class knows its data; None for any.

    Raises:
      ConfigError: a setting is wrong.
      DataError: the data root does not say what it holds.
    """

    name = "dataset"
    absent_scores = False
    fixed: Mapping[str, object] | None = None

    def __init__(
        self,
        root: str = "",
        size: Sequence[int] | None = None,
        file: str = description.FILE,
        spacing_mm: Sequence[float] | None = None,
        normalisation: Sequence[str] | str | None = None,
        intensities: Mapping[str, Mapping[str, float]] | None = None,
        tolerance_mm: float = 2.0,
        sides: str = "auto",
        patient: str = "",
        outside_root: bool = False,
        analyze_axes: str = "",
        described: Mapping[str, object] | Path | None = None,
        aggregate: str = "clean",
    ):
        described = self.fixed if described is None else described
        if not root and described is None:
            raise ConfigError(
                "config.data.root is empty: say where the data set is, --config.data.root=/path/to/"
                f"folder with a {description.FILE}"
            )
        check_name("sides", sides, ("auto", "none"))
        check_name("aggregate", aggregate, metrics.MODES)
        settings.check_flag("outside_root", outside_root)
        settings.check_pattern(patient)
        self.size = settings.slice_size(size)
        self._axes = settings.axes(analyze_axes)
        self.aggregate, self.file = aggregate, file
        self.spacing_mm = settings.spacing(spacing_mm, self.size)
        self.profile = settings.profile(tolerance_mm)
        self._rules = layouts.Rules((), outside_root, patient)
        if described is None:
            self._own = description.read(Path(root), file)
            self.description = self._completed(self._own)
        else:
            self._own, path = None, Path(root or ".") / file
            if isinstance(described, Path):
                path, described = described, description.read_json(described)
            self.description = description.of_record(described, path)
        self.modalities = tuple(channel.name for channel in self.description.channels)
        self._rules = dataclasses.replace(self._rules, channels=self.modalities)
        self.labels = self.description.labels
        self.ignore = self.labels.ignore
        self.classes, self.regions = self.labels.classes, self.labels.names
        self.activation = "sigmoid" if self.labels.regions else "softmax"
        self.sides = sides_lib.pairs(self.labels.names) if sides == "auto" else ()
        self.normalisation = settings.schemes(normalisation, self.description.channels)
        self.intensities = settings.statistics(intensities, self.modalities)
        self._colours = colours.of(self.regions, self.description.colours)

    def record(self) -> dict[str, object]:
        """See `Challenge.record`: with what the data set says of itself in place of its root."""
        return {**super().record(), "root": "", "described": self.description.record()}

    # ----------------------------------------------------------------------- cases

    def scan(self, root: Path, *, labelled: bool) -> tuple[list[CaseFiles], list[tuple[str, str]]]:
        """See `Challenge.scan`, `layouts.training` and `layouts.new`."""
        root = Path(root)
        if labelled:
            found = self._of(root)
            self._check_same(found)
            return layouts.training(found, self._rules)
        own = self._own if self._own and self._own.root == root else self.description
        return layouts.new(root, own, self._rules)

    def _of(self, root: Path) -> Description:
        """The description of the data set in a folder, as it was read if that is its own."""
        own = self._own if self._own and self._own.root == root else None
        return own or description.read(root, self.file)

    def _check_same(self, found: Description) -> None:
        """Raises DataError if another data set means other things by channels or labels."""
        for what, ours, theirs in (
            ("labels", self.labels, found.labels),
            ("channels", self.modalities, tuple(channel.name for channel in found.channels)),
        ):
            if theirs and theirs != ours:
                raise DataError(
                    f"{found.path}: its {what} are {theirs}, expected {ours} in this order, as "
                    f"{self.description.path} says; correct it, or train a new run"
                )

    def _completed(self, found: Description) -> Description:
        """Description with channels and labels, told from the files where nothing names them."""
        if found.channels and found.labels is not None:
            return found
        cases, bad = layouts.training(found, self._rules)
        if not cases:
            raise ManyErrors(f"{found.root}: no case can be used; repair or remove them", bad)
        if not found.label_ending:
            ending = volume.suffix_of(cases[0].label)
            found = dataclasses.replace(found, label_ending=ending)
        if not found.channels:
            found = dataclasses.replace(
                found, channels=_channels(cases, found.modality, self._axes)
            )
        if found.labels is None:
            found = dataclasses.replace(found, labels=_labels_of_files(found, cases, self._axes))
        return found

    def load(self, files: CaseFiles) -> Case:
        """See `Challenge.load`. All files of a case lie on one grid with axes at right angles."""
        image, geometry = volume.read_image(
            files.images, tolerance_mm=self.grid_tolerance_mm, analyze_axes=self._axes
        )
        image = image if image.ndim == 4 else image[..., None]
        if image.shape[-1] != len(self.modalities):
            raise DataError(
                f"{files.images[0]}: has {image.shape[-1]} channels in {len(files.images)} files, "
                f"expected {len(self.modalities)}: {', '.join(self.modalities)}"
            )
        for channel, name in enumerate(self.modalities):
            path = files.images[channel if len(files.images) > 1 else 0]
            nifti.check_finite(image[..., channel], f"{path} (channel {channel}, {name})")
        grid.check_orthogonal(geometry, self.grid_tolerance_mm)
        label = None
        if files.label is not None:
            label, label_geometry = volume.read_label(files.label, analyze_axes=self._axes)
            grid.check_same(geometry, label_geometry, self.grid_tolerance_mm)
            label = np.ascontiguousarray(label)
            self.check_label(files.label, label)
        image = np.ascontiguousarray(image)
        return Case(files.id, files.patient, image, label, geometry.spacing_mm, geometry)

    def check_label(self, path: Path, label: np.ndarray) -> None:
        """See `Challenge.check_label`."""
        if wrong := self.labels.unknown(label):
            listed = ", ".join(f"{v} ({n} voxels)" for v, n in list(wrong.items())[:10])
            more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
            raise DataError(
                f"{path}: holds label values {listed}{more}; the data set has only {self.labels}. "
                f"Correct the file, or name the values in {self.description.path.name}"
            )

    # ----------------------------------------------------------------------- to the network, back

    def prepare(self, case: Case) -> Prepared:
        """See `Challenge.prepare` and `preparation.prepare`."""
        return preparation.prepare(
            case,
            self.modalities,
            self.normalisation,
            self.intensities,
            size=self.size,
            spacing_mm=self.spacing_mm,
        )

    def finish(self, probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
        """See `Challenge.finish`: `Labels.decode` on the case's own grid."""
        if probabilities.shape[-1] != len(self.classes):
            raise ValueError(
                f"probabilities have {probabilities.shape[-1]} channels, expected {self.classes}"
            )
        if not np.isfinite(probabilities).all():
            raise DataError("the network's probabilities contain NaN or infinity")
        return preparation.restore(
            probabilities, prepared, self.labels.decode, spacing_mm=self.spacing_mm
        )

    def encode(self, label: np.ndarray, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
        """See `Challenge.encode`; with an ignore label int8 targets, -1 where nobody annotated."""
        del kind
        return self.labels.encode(label), np.ones(len(self.classes), np.float32)

    def masks(self, label: np.ndarray) -> np.ndarray:
        """See `Challenge.masks`; voxels of the ignore label are in none."""
        return self.labels.masks(label)

    def check_flips(self, axes: Sequence[int], ndim: int, field: str) -> None:
        """See `Challenge.check_flips`; names the setting that allows them."""
        try:
            super().check_flips(axes, ndim, field)
        except ConfigError as error:
            raise ConfigError(
                f"{error}. If these names mean no side of the body: --config.challenge.sides=none"
            ) from error

    # ----------------------------------------------------------------------- scores

    def score(
        self,
        truth_label: np.ndarray,
        predicted_label: np.ndarray,
        spacing_mm: Sequence[float],
        *,
        kind: str = "",
    ) -> dict[str, float]:
        """See `Challenge.score`; what is predicted where nobody annotated does not count."""
        known = self.labels.known(truth_label)
        if known is not None and predicted_label.shape == truth_label.shape:
            predicted_label = np.where(known, predicted_label, 0).astype(predicted_label.dtype)
        profile, row = metrics.PROFILES[self.profile], {}
        for region, values in self.structures.items():  # one at a time: there may be a hundred
            masks = (np.isin(label, values)[..., None] for label in (truth_label, predicted_label))
            row |= profile.score(*masks, regions=(region,), spacing_mm=spacing_mm)
        names = (f"{m.name}_{region}" for m in profile.metrics for region in self.regions)
        return {name: row[name] for name in names}

    def tables(self, evaluated: Sequence[Evaluated]) -> list[Table]:
        """See `Challenge.tables`: the mean over the foreground."""
        rows = []
        for metric in metrics.PROFILES[self.profile].metrics[:3]:
            columns = [
                _mean([case.row[f"{metric.name}_{region}"] for case in evaluated])
                for region in self.regions
            ]
            value = _mean(columns)
            scored = sum(not math.isnan(column) for column in columns)
            shown = None if math.isnan(value) else value * metric.factor
            rows.append((metric.title, shown, float(scored)))
        return [
            Table(
                "foreground",
                "Mean over the foreground",
                ("Metric", "Mean", "Structures"),
                tuple(rows),
                (
                    "The mean over the structures of each one's mean over the cases in which it is "
                    "scored; the background does not count.",
                ),
            )
        ]

    def layers(self, label: np.ndarray) -> dict[str, tuple[np.ndarray, str]]:
        """See `Challenge.layers`; of many labels only those that are there."""
        masks = dict(zip(self.regions, self._each_mask(label), strict=True))
        return {
            name: (mask, self._colours[name])
            for name, mask in masks.items()
            if len(masks) <= _LEGEND or mask.any()
        }

    def _each_mask(self, label: np.ndarray) -> list[np.ndarray]:
        return [np.isin(label, values) for values in self.labels.values]

    # ----------------------------------------------------------------------- files

    def prediction_path(self, folder: str | os.PathLike, case_id: str) -> Path:
        """See `Challenge.prediction_path`: ends as the data set's labels do, if it can be written.

        `CASE.nii.gz` where that is not known.
        """
        ending = self.description.label_ending.lower()
        return Path(folder) / f"{case_id}{ending if ending in volume.WRITERS else '.nii.gz'}"

    def read_prediction(self, path: str | os.PathLike) -> tuple[np.ndarray, Geometry]:
        """See `Challenge.read_prediction`."""
        return volume.read_label(path, analyze_axes=self._axes)

    def write(self, path: str | os.PathLike, label: np.ndarray, geometry: Geometry) -> Path:
        """See `Challenge.write`: uint8, or uint16 where the data set has values above 255."""
        self.check_label(Path(path), label)
        return volume.write_label(path, label, geometry, self.labels.dtype)

    def official_folds(self, root: str | os.PathLike) -> int:
        """See `Challenge.official_folds` and `folds.count`."""
        return folds.count(self._of(Path(root)))

    def official_split(self, root: str | os.PathLike, *, fold: int = 0) -> dict[str, list[str]]:
        """See `Challenge.official_split` and `folds.lists`: one fold of the data set's own."""
        cases, _ = self.scan(Path(root), labelled=True)
        return folds.lists(self._of(Path(root)), cases, fold)

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """See `Challenge.structures`."""
        return dict(zip(self.labels.names, self.labels.values, strict=True))

    def description_record(self) -> dict[str, object]:
        """See `Challenge.description_record`: a dataset.json."""
        return self.description.record()

    def provenance(self) -> dict[str, object]:
        """See `Challenge.provenance`."""
        return {"normalisation": list(self.normalisation)}

    def fingerprint(self) -> dict[str, object]:
        """See `Challenge.fingerprint`."""
        return {
            "challenge": "dataset",
            "channels": list(self.modalities),
            **self.labels.record(),
            "size": None if self.size is None else list(self.size),
            "spacing_mm": self.spacing_mm,
            "normalisation": list(self.normalisation),
            "intensities": [None if s is None else dict(s) for s in self.intensities],
            "outside": preprocess.PARAMETERS["outside"],
            **({"analyze_axes": self._axes} if self._axes else {}),
            **self.grid_fingerprint(),
        }


# --------------------------------------------------------------------------- told from files


def _channels(cases: Sequence[CaseFiles], modality: str, axes: str | None) -> tuple[Channel, ...]:
    """Channels by number, as many as the first case has."""
    count = len(cases[0].images)
    if count == 1:
        image, _ = volume.read_image(cases[0].images, analyze_axes=axes)
        count = image.shape[-1] if image.ndim == 4 else 1
    name = modality or "channel"
    names = [name] if count == 1 else [f"{name}_{i}" for i in range(count)]
    return tuple(dataclasses.replace(Channel.of(modality or n), name=n) for n in names)


def _labels_of_files(
    found: Description, cases: Sequence[CaseFiles], axes: str | None
) -> labels.Labels:
    """Labels from the values in all label files; says which, and how to name them."""

    def values(path: Path) -> np.ndarray:
        return np.unique(volume.read_label(path, analyze_axes=axes)[0])

    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        present = np.unique(np.concatenate([*pool.map(values, [c.label for c in cases])]))
    if len(present) > _MOST_LABELS or not present.any():
        raise DataError(
            f"{cases[0].label.parent}: the labels hold {len(present)} different values, from "
            f"{present.min()} to {present.max()}; expected 2 to {_MOST_LABELS}. Are these label "
            "maps?"
        )
    told = labels.of_values(present.tolist())
    record = dataclasses.replace(found, labels=told, form="nnunet").record()
    warn_once(
        f"{found.root}: no file names the labels; the values found in {len(cases)} label files are "
        f"{told}. To name them, write {found.root / description.FILE} with "
        + str(record).replace("'", '"')
    )
    return told


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
