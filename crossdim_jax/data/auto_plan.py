"""Plan of a training from the fingerprint of a data set: each line a value and its reason.

Where nothing else is said the rules are nnU-Net's (experiment_planners, version 2.8.1); those for
the depth of a pre-trained encoder are in `models.anisotropy`. Lines are made in the order of
`Plan.FIELDS`, and a later one follows from those before, whether they were found or given by hand.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from crossdim_jax.data import plan_length
from crossdim_jax.data.fingerprint import Fingerprint
from crossdim_jax.data.plan_length import ANY, Budget
from crossdim_jax.data.plan_network import REDUCTION, Network
from crossdim_jax.data.plan_record import Plan
from crossdim_jax.errors import ConfigError
from crossdim_jax.imaging import normalise
from crossdim_jax.imaging.spacing import ANISOTROPIC
from crossdim_jax.models import anisotropy

GIB = 2**30
MOST_VOXELS = 256**3  # of a patch
MOST_PIXELS = 1024  # of a slice along an axis
LEAST_BATCH = 2
MOST_SLICES = 32  # of a batch of slices
SHARE = 0.05  # of the data set's voxels that a batch has at most
_GIVEN = "given"
_AXES = ("z", "y", "x")


def plan(
    fingerprint: Fingerprint,
    network: Network,
    *,
    budget: Budget = ANY,
    schemes: Sequence[str] | None = None,
    rates: tuple[float, float] | None = None,
    steps_per_epoch: int | None = None,
    given: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan of a training.

    Args:
      fingerprint: of the training cases.
      network: that is trained.
      budget: memory and time.
      schemes: of normalisation, of each channel; None: by its name.
      rates: the first and the last learning rate, for an exponential decay.
      steps_per_epoch: length of an epoch; None: as many steps as show every case or slice once.
      given: {line: value} of lines set by hand; None is a value too.

    Raises:
      ConfigError: a line cannot be as given, or volumes have one slice only.
    """
    given = dict(given or {})
    for name in ("depth_kernels", "depth_strides"):
        if isinstance(given.get(name), int):
            given[name] = (given[name],)  # means the same
    if unknown := set(given) - set(Plan.FIELDS):
        raise ConfigError(
            f"a plan has no line {', '.join(sorted(unknown))}; known: {', '.join(Plan.FIELDS)}"
        )
    own = tuple(schemes or map(normalise.scheme_of, fingerprint.channels))
    return _Planner(fingerprint, network, budget, given, own).plan(rates, steps_per_epoch)


class _Planner:
    """Makes the lines of a plan, one method each, in their order."""

    def __init__(
        self,
        fingerprint: Fingerprint,
        network: Network,
        budget: Budget,
        given: Mapping[str, Any],
        schemes: tuple[str, ...],
    ):
        self.fingerprint, self.ndim, self.network = fingerprint, network.ndim, network
        self.budget, self.given, self.own = budget, given, schemes
        self._depth = {name: o for name, o in given.items() if name.startswith("depth_")}
        self.reasons: dict[str, str] = {}

    def plan(self, rates: tuple[float, float] | None, steps_per_epoch: int | None) -> Plan:
        """See `plan`."""
        spacing = self._line("spacing_mm", self._spacing)
        self.spacing_mm = None if spacing is None else tuple(map(float, spacing))
        if self.spacing_mm and not (len(self.spacing_mm) == 3 and min(self.spacing_mm) > 0):
            raise ConfigError(f"spacing_mm is {spacing}; expected three numbers above 0 (z, y, x)")
        schemes = self._schemes(self._line("normalisation", self._normalisation))
        self.sizes = self._sizes()
        patch = tuple(map(int, self._line("patch", self._patch)))
        if len(patch) != self.ndim:
            raise ConfigError(f"patch is {patch}; expected {self.ndim} lengths")
        options = self._options(patch)
        kernels = self._line("depth_kernels", lambda: (options.kernels, self._why_kernels(options)))
        strides = self._line("depth_strides", lambda: (options.strides, self._why_strides(options)))
        self.network.check_size(patch, kernels, strides)
        batch = int(self._line("batch_size", lambda: self._batch(patch, kernels, strides)))
        loss = self._line("loss", self._loss)
        epoch = steps_per_epoch or math.ceil(self._shown() / batch)
        voxels = batch * math.prod(patch)
        planned = plan_length.length(epoch, voxels, self.budget, rates, self._line)
        ct = {str(i) for i, scheme in enumerate(schemes) if scheme == "ct"}
        return Plan(
            spacing_mm=self.spacing_mm,
            normalisation=schemes,
            patch=patch,
            depth_kernels=None if kernels is None else tuple(kernels),
            depth_strides=None if strides is None else tuple(strides),
            batch_size=batch,
            loss=loss,
            **planned,
            reasons={name: self.reasons[name] for name in Plan.FIELDS},
            intensities={c: v for c, v in self.fingerprint.intensities().items() if c in ct},
        )

    def _line(self, name: str, find: Callable[[], tuple[Any, str]]) -> Any:
        """Value of a line, given or found; its reason is noted."""
        value, self.reasons[name] = (self.given[name], _GIVEN) if name in self.given else find()
        return value

    def _schemes(self, given: Sequence[str] | str | None) -> tuple[str, ...]:
        """The scheme of each channel. Raises ConfigError if one is unknown, or their number."""
        channels = self.fingerprint.channels
        given = self.own if given is None else given
        schemes = (given,) * len(channels) if isinstance(given, str) else tuple(given)
        if len(schemes) != len(channels):
            raise ConfigError(
                f"normalisation has {len(schemes)} schemes; expected one for each of "
                f"{', '.join(channels)}"
            )
        return tuple(map(normalise.check_scheme, schemes))

    # ------------------------------------------------------------------- spacing, intensities

    def _spacing(self) -> tuple[tuple[float, ...] | None, str]:
        if self.ndim == 2:
            return None, "slices are resized to one size, in pixels"
        spacings, shapes = self.fingerprint.spacings_mm, self.fingerprint.shapes(None)
        target, size = np.median(spacings, 0), np.median(shapes, 0)
        worst = int(target.argmax())
        others = np.delete(target, worst).max()
        alike = np.ptp(spacings, 0).max() <= 1e-3 * target.min()
        why = "that of all cases" if alike else f"median of {len(spacings)} cases"
        if target[worst] > ANISOTROPIC * others:
            axis = _AXES[worst]
            if worst != 0:
                # The networks' depth is z: along y and x they reduce whatever the voxels are.
                target[worst] = 2 * others
                why += f"; along {axis}, where slices are thick, twice that of the other axes: "
                why += "networks know thick slices along z only"
            elif size[worst] * ANISOTROPIC < np.delete(size, worst).min() and not alike:
                target[worst] = max(np.percentile(spacings[:, worst], 10), others + 1e-5)
                why += f"; along {axis}, where slices are thick and few, the 10th percentile"
        return tuple(round(float(t), 6) for t in target), why

    def _normalisation(self) -> tuple[tuple[str, ...], str]:
        found = self.fingerprint
        schemes = self.own
        parts = []
        for number, (name, scheme) in enumerate(zip(found.channels, schemes, strict=True)):
            why = "by the channel's name"
            if scheme == "ct":
                why = _why_ct(found.intensities().get(str(number)))
            elif scheme == "zscore":
                masked, count = found.masked[number], len(found.cases)
                why = "over the whole image"
                if self.ndim == 3 and masked:
                    why = "over the inside of a mask, images are 0 outside"
                    why += f" ({masked} of {count})" if masked < count else ""
            parts.append((name, why))
        reasons = dict.fromkeys(why for _, why in parts)
        if len(reasons) == 1:
            return schemes, next(iter(reasons))
        return schemes, "; ".join(f"{name}: {why}" for name, why in parts)

    # ------------------------------------------------------------------- patch, depth, batch

    def _sizes(self) -> np.ndarray:
        """(n, ndim) shape of each case as patches are cut from it."""
        if self.ndim == 2:
            cases = self.fingerprint.cases.values()
            return np.array([case.full_shape[1:] for case in cases])
        sizes = self.fingerprint.shapes(self.spacing_mm)
        if np.median(sizes[:, 0]) <= 1:
            raise ConfigError(
                "the images have one slice only, and this network takes volumes; use one for "
                "slices, such as that of configs/dataset_omnianet.py"
            )
        return sizes

    def _patch(self) -> tuple[tuple[int, ...], str]:
        median = np.median(self.sizes, 0)
        start = np.minimum(median, MOST_PIXELS)
        if self.ndim == 3:
            spacing = np.array(self.spacing_mm or np.median(self.fingerprint.spacings_mm, 0))
            cube = (1 / spacing) * (MOST_VOXELS * spacing.prod()) ** (1 / 3)
            start = np.minimum(median, cube)
        patch, limits = self._snapped(start), set()
        while limit := self._too_large(patch):
            smaller = self._smaller(patch, median)
            if smaller is None:
                limits = {f"the smallest that the network takes, though {limit}"}
                break
            limits.add(limit)
            patch = smaller
        return patch, self._why_patch(patch, median, sorted(limits))

    def _why_patch(self, patch: Sequence[int], median: np.ndarray, limits: Sequence[str]) -> str:
        shape = " x ".join(f"{n:g}" for n in median)
        if self.ndim == 2:
            return "; ".join([f"slices of {shape} pixels (median)", *limits])
        held = np.minimum(patch, median).prod() / median.prod()
        parts = [f"{held:.0%} of a median volume, {shape} voxels at that spacing"]
        if padded := [a for a, n, m in zip(_AXES, patch, median, strict=True) if n > m]:
            deepest = " x ".join(str(n) for n in self._deepest(patch))
            parts.append(f"padded along {', '.join(padded)}; the deepest map has {deepest} voxels")
        return "; ".join([*parts, *limits])

    def _deepest(self, patch: Sequence[int]) -> tuple[int, ...]:
        """Shape of the deepest feature map."""
        return (patch[0] // self._options(patch).reduction, *(n // REDUCTION for n in patch[1:]))

    @property
    def _thickness(self) -> float:
        """Depth of a voxel in pixels of the plane."""
        spacing = self.spacing_mm or np.median(self.fingerprint.spacings_mm, 0)
        return float(spacing[0] / min(spacing[1:]))

    def _options(self, patch: Sequence[int]) -> anisotropy.DepthOptions:
        return self.network.options(patch, self._thickness, self._depth)

    def _snapped(self, size: Sequence[float]) -> tuple[int, ...]:
        return self.network.snapped(size, self._thickness, self._depth)

    def _step_bytes(self, voxels: float, kernels: Any, strides: Any) -> float:
        return self.network.footprint(kernels, strides).step_bytes(voxels)

    def _smaller(self, patch: Sequence[int], median: np.ndarray) -> tuple[int, ...] | None:
        """Patch that is smaller along the axis which is longest beside the median volume's."""
        order = np.argsort(-np.array(patch) / median, kind="stable")
        for axis in order:
            for length in range(patch[axis] - 1, 0, -1):
                size = [*patch]
                size[axis] = length
                snapped = self._snapped(size)
                if math.prod(snapped) < math.prod(patch):
                    return snapped
        return None

    def _too_large(self, patch: Sequence[int]) -> str:
        """Limit that a batch of the fewest patches would break; "" if none."""
        options = self._options(patch)
        voxels = LEAST_BATCH * math.prod(patch)
        needs = self._step_bytes(voxels, options.kernels, options.strides)
        if needs > self.budget.memory_gib * GIB:
            return f"{self.budget.memory_gib:g} GiB hold no larger one, {LEAST_BATCH} at a time"
        if voxels > self.budget.voxels_per_step:
            wanted = self.budget.least_steps
            return f"{self.budget.minutes:g} minutes hold {wanted} steps of no larger one"
        return ""

    def _batch(self, patch: Sequence[int], kernels: Any, strides: Any) -> tuple[int, str]:
        voxels = math.prod(patch)
        fixed = self._step_bytes(0, kernels, strides)
        each = self._step_bytes(voxels, kernels, strides) - fixed
        by_memory = int((self.budget.memory_gib * GIB - fixed) / each)
        total = self.sizes.prod(1, dtype=float).sum()
        if self.ndim == 2:
            total = sum(math.prod(case.full_shape) for case in self.fingerprint.cases.values())
        by_share = max(LEAST_BATCH, int(SHARE * total / voxels))
        limits = {
            f"as many as fit into {self.budget.memory_gib:g} GiB": by_memory,
            f"no more than {SHARE:.0%} of the data set's voxels, but {LEAST_BATCH}": by_share,
        }
        if self.ndim == 2:
            limits[f"no more than {MOST_SLICES}"] = MOST_SLICES
        if self.budget.voxels_per_step < math.inf:
            by_time = int(self.budget.voxels_per_step / voxels)
            limits[f"so that {self.budget.minutes:g} minutes hold enough steps"] = by_time
        why, batch = min(limits.items(), key=lambda item: item[1])
        if batch < 1:
            batch, why = 1, f"the least, though it may not be {why}"
        needs = (fixed + batch * each) / GIB
        return batch, f"{why}; a step needs about {needs:.1f} GiB"

    # ------------------------------------------------------------------- depth and length

    def _why_kernels(self, options: anisotropy.DepthOptions) -> str:
        if not self.network.has_depth_options:
            return "the encoder sees slices"
        if options.kernels is None:
            return "voxels are about cubic"
        ratio = f"{self._thickness:.2g}"
        return f"voxels are {ratio} times as thick as wide: one tap until they are about cubic"

    def _why_strides(self, options: anisotropy.DepthOptions) -> str:
        if not self.network.has_depth_options:
            return "the encoder sees slices"
        if options.strides is None:
            return "as in the plane"
        why = "no stride until voxels are about cubic" if options.kernels else "as in the plane"
        return f"{why}, and none that would leave less than {anisotropy.SMALLEST} slices"

    def _loss(self) -> tuple[str, str]:
        if self.fingerprint.regions:
            return "dice_bce", "regions overlap: sigmoids"
        return "dice_ce", "labels are disjoint: a softmax"

    def _shown(self) -> int:
        """Number of the cases, or of their slices."""
        cases = self.fingerprint.cases.values()
        return sum(c.full_shape[0] for c in cases) if self.ndim == 2 else len(cases)


def _why_ct(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "by each image's own percentiles: no case has a foreground"
    low, high = found["percentile_00_5"], found["percentile_99_5"]
    return (
        f"clipped to {low:.4g} to {high:.4g}, minus {found['mean']:.4g}, over {found['sd']:.4g}: "
        "percentiles, mean and sd of the foreground"
    )
