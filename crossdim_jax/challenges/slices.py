"""Base of challenges whose images a 2D network sees slice by slice, under a softmax."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import ConfigError, DataError
from crossdim_jax.imaging import preprocess, resample
from crossdim_jax.imaging.case import Case, Prepared


class SliceChallenge(Challenge):
    """Challenge of disjoint classes, each a label value, in slices of one size.

    Args:
      size: (y, x) of what the network sees; every slice is brought to it, and predictions back.

    Attributes:
      values: the label value of each class, that of the background first.
      contents: the indices of the classes that make up each region.
      statistics: over what z-scores are taken, a key of `preprocess.STATISTICS`.
    """

    activation = "softmax"
    values: tuple[int, ...]
    contents: tuple[tuple[int, ...], ...]
    statistics: str = "slice"

    def __init__(self, size: Sequence[int]):
        if len(size) != 2 or min(size) < 1:
            raise ConfigError(f"size is {tuple(size)}; expected (y, x), each at least 1")
        self.size = tuple(int(n) for n in size)

    def annotated(self, kind: str) -> tuple[bool, ...]:
        """True for each class that is annotated in images of a kind; by default all."""
        del kind
        return (True,) * len(self.classes)

    def annotated_regions(self, kind: str) -> tuple[bool, ...]:
        """See `Challenge.annotated_regions`: regions all of whose classes are annotated."""
        known = self.annotated(kind)
        return tuple(all(known[i] for i in classes) for classes in self.contents)

    def prepare(self, case: Case) -> Prepared:
        """See `Challenge.prepare`: z-scores over all pixels, then one size."""
        return preprocess.slices(case, self.size, statistics=self.statistics)

    def finish(self, probabilities: np.ndarray, prepared: Prepared) -> np.ndarray:
        """See `Challenge.finish`: back to the own grid, then the most probable class.

        Probabilities are resized, not labels: a border may then lie between the network's pixels.
        """
        if probabilities.shape[-1] != len(self.classes):
            raise ValueError(
                f"probabilities have {probabilities.shape[-1]} channels, expected {self.classes}"
            )
        if not np.isfinite(probabilities).all():
            raise DataError("the network's probabilities contain NaN or infinity")
        on_grid = resample.resize(probabilities, prepared.full_shape[1:])
        return np.asarray(self.values, np.uint8)[on_grid.argmax(-1)]

    def check_label(self, path: Path, label: np.ndarray) -> None:
        """See `Challenge.check_label`."""
        if unknown := sorted(set(np.unique(label).tolist()) - set(self.values)):
            known = zip(self.values, self.classes, strict=True)
            raise DataError(
                f"{path}: holds the values {unknown}; labels of {self.name.upper()} are "
                + ", ".join(f"{value} {name}" for value, name in known)
            )

    def encode(self, label: np.ndarray, kind: str = "") -> tuple[np.ndarray, np.ndarray]:
        """See `Challenge.encode`."""
        targets = np.stack([label == value for value in self.values], -1)
        return targets.astype(np.uint8), np.asarray(self.annotated(kind), np.float32)

    def masks(self, label: np.ndarray) -> np.ndarray:
        """See `Challenge.masks`."""
        values = [[self.values[i] for i in classes] for classes in self.contents]
        return np.stack([np.isin(label, v) for v in values], -1)
