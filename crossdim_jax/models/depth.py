"""An encoder's options along depth: one entry for its stem and for each of its stages."""

import dataclasses
import math
from collections.abc import Sequence

from crossdim_jax.models.conv import Depth, check_depth_padding


@dataclasses.dataclass(frozen=True)
class Strides:
    """The strides of an encoder, of which those along depth may differ from those of the plane.

    Attributes:
      name: of the encoder, for messages.
      in_plane: of the stem, then of each stage.
      windows: kernel sizes in the plane of the stem, then of each stage's first block.
      features: the entries of `in_plane` after which a feature is handed on.
    """

    name: str
    in_plane: tuple[int, ...]
    windows: tuple[int, ...]
    features: tuple[int, ...]

    def reductions(self) -> tuple[int, ...]:
        """Reduction of each feature in the plane, finest first."""
        return tuple(math.prod(self.in_plane[: f + 1]) for f in self.features)

    def depth_reductions(self, strides: int | Sequence[int] | None = None) -> tuple[int, ...]:
        """Reduction of each feature along depth with those `depth_strides`, finest first."""
        steps = [
            stride if depth.stride is None else depth.stride
            for depth, stride in zip(self.depths(strides=strides), self.in_plane, strict=True)
        ]
        return tuple(math.prod(steps[: f + 1]) for f in self.features)

    def depths(
        self,
        kernels: int | Sequence[int] | None = None,
        strides: int | Sequence[int] | None = None,
        padding: str = "zero",
        factorised: bool = False,
    ) -> tuple[Depth, ...]:
        """Depth options of the stem, then of each stage; the arguments are an encoder's.

        Raises:
          ValueError: there are too few or too many entries, one is not a positive number, a stage
            that keeps its resolution has a depth stride, or the padding is unknown.
        """
        check_depth_padding(padding)
        taps = self._per_stage("depth_kernels", kernels)
        steps = self._per_stage("depth_strides", strides)
        if isinstance(strides, int) or (strides is not None and len(strides) == 1):
            steps = tuple(d if s > 1 else 1 for d, s in zip(steps, self.in_plane, strict=True))
        for i, (step, stride) in enumerate(zip(steps, self.in_plane, strict=True)):
            if stride == 1 and step not in (1, None):
                allowed = [j for j, s in enumerate(self.in_plane) if s > 1]
                place = f"stage {i - 1}" if i else "the stem"
                raise ValueError(
                    f"depth_strides={tuple(strides)}: entry {i} is {step}, but {place} of "
                    f"{self.name!r} has no stride in the plane, so it must be 1; entries {allowed} "
                    "may differ"
                )
        return tuple(
            Depth(window, step, padding, factorised)
            for window, step in zip(taps, steps, strict=True)
        )

    def _per_stage(self, name, given):
        """One entry for the stem and each stage."""
        count = len(self.in_plane)
        if given is None:
            return (None,) * count
        entries = (given,) if isinstance(given, int) else tuple(given)
        entries = entries * count if len(entries) == 1 else entries
        if len(entries) != count:
            raise ValueError(
                f"{name}={tuple(given)}: found {len(entries)} entries, expected one, or {count} "
                f"for {self.name!r}: the stem's and one for each of its {count - 1} stages"
            )
        if not all(isinstance(n, int) and n >= 1 for n in entries):
            raise ValueError(f"{name}={given}: expected whole numbers of at least 1")
        return entries
