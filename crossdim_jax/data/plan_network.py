"""Network as a plan sees it: sizes that it takes, its depth options, its memory."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from crossdim_jax import models
from crossdim_jax.errors import ConfigError
from crossdim_jax.models import activations, anisotropy, encoders

REDUCTION = 32  # of the plane by the deepest feature
DEEPEST = 2  # voxels that the deepest feature map has at least along each axis
_NONE = anisotropy.DepthOptions(None, None, 1)

Options = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network for some data.

    Attributes:
      name: a key of `models.NETWORKS`.
      channels, classes: of images and predictions.
      attributes: of the network, but for its classes and the depth options.
    """

    name: str
    channels: int
    classes: int
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ndim(self) -> int:
        """3 if it takes volumes, 2 for slices."""
        return 2 if self.name == "omnianet" else 3

    @property
    def has_depth_options(self) -> bool:
        """True if its encoder sees volumes."""
        return self.name == "dxnet"

    @property
    def encoder(self) -> str:
        """Name of its encoder."""
        return self.attributes.get("encoder", "efficientnet_b0")

    def build(self, kernels: Options = None, strides: Options = None) -> Any:
        """The network; nothing is computed. Raises ConfigError as `models.build` does."""
        options = {"depth_kernels": kernels, "depth_strides": strides}
        options = options if self.has_depth_options else {}
        attributes = {**self.attributes, "out_channels": self.classes, **options}
        return models.build(self.name, **attributes)

    def check_size(self, patch: Sequence[int], kernels: Options, strides: Options) -> None:
        """Raises ConfigError unless it takes a patch."""
        try:
            self.build(kernels, strides).check_size(tuple(patch))
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"patch is {tuple(patch)}: {error}") from error

    def options(
        self, patch: Sequence[int], thickness: float, given: Mapping[str, Options]
    ) -> anisotropy.DepthOptions:
        """Depth options for a patch, but for those that are given; none of a network without.

        Args:
          patch: (z, y, x) or (y, x).
          thickness: of a voxel along depth, in pixels of the plane.
          given: of "depth_kernels" and "depth_strides" those that are.
        """
        if not self.has_depth_options:
            return _NONE
        if given:  # which must fit the encoder
            self.build(given.get("depth_kernels"), given.get("depth_strides"))
        found = anisotropy.depth_options(self.encoder, thickness, patch[0])
        if "depth_strides" in given:
            strides = given["depth_strides"]
            reduction = encoders.depth_reductions(self.encoder, strides)[-1]
            found = found._replace(strides=strides, reduction=reduction)
        if "depth_kernels" in given:
            found = found._replace(kernels=given["depth_kernels"])
        return found

    def snapped(
        self, size: Sequence[float], thickness: float, given: Mapping[str, Options]
    ) -> tuple[int, ...]:
        """The smallest patch that covers a size; the deepest map has `DEEPEST` voxels each way."""
        plane = tuple(max(DEEPEST, math.ceil(n / REDUCTION)) * REDUCTION for n in size[-2:])
        if len(size) == 2:
            return plane
        if not self.has_depth_options:
            return (self.depth_of(size[0]), *plane)
        slices = max(1, math.ceil(size[0]))
        reduction = self.options((slices, *plane), thickness, given).reduction
        return (max(DEEPEST, math.ceil(slices / reduction)) * reduction, *plane)

    def depth_of(self, slices: float) -> int:
        """The depth, of those that a network takes, which is nearest above; else the largest."""
        if not self._depths:
            raise ConfigError(f"network {self.name} takes no volumes")
        return next((n for n in self._depths if n >= slices), self._depths[-1])

    @functools.cached_property
    def _depths(self) -> list[int]:
        model, fits = self.build(), []
        for slices in range(1, 257):
            try:
                model.check_size((slices, 64, 64))
            except ValueError:
                continue
            fits.append(slices)
        return fits

    def footprint(self, kernels: Options = None, strides: Options = None) -> activations.Footprint:
        """Memory of a training step, see `activations.footprint`."""
        options = tuple(None if o is None else tuple(o) for o in (kernels, strides))
        if options not in self._footprints:
            self._footprints[options] = activations.footprint(
                self.build(*options),
                self.probe(options[1]),
                self.channels,
                self.classes,
            )
        return self._footprints[options]

    @functools.cached_property
    def _footprints(self) -> dict[Any, activations.Footprint]:
        return {}

    def probe(self, strides: Options = None) -> tuple[int, ...]:
        """A small size that the network takes."""
        if self.ndim == 2:
            return (64, 64)
        if not self.has_depth_options:
            return (self.depth_of(1), 64, 64)
        return (max(8, encoders.depth_reductions(self.encoder, strides)[-1]), 64, 64)
