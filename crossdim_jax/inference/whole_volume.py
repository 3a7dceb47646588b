"""Inference on whole volumes at once, shared along their depth by several devices."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from crossdim_jax.errors import ConfigError
from crossdim_jax.inference.sliding_window import SlidingWindow
from crossdim_jax.inference.windows import flip_axes
from crossdim_jax.losses import ACTIVATIONS
from crossdim_jax.runtime.sharding import replicated

PLANE = 32  # by so much every network reduces height and width
DEEPEST_PADDING = 160  # slices that may be added for a network that needs many


@dataclasses.dataclass(frozen=True)
class WholeVolume:
    """Predictor of images in one piece, without window borders.

    The image is padded with zeros, evenly on both sides, to the next size that the network takes,
    and the result is cropped back. That size depends on the image alone, so the result on several
    devices is that on one up to rounding. Where the depth does not divide over the devices, the
    arrays that travel are a little deeper, and the program takes off what was added before the
    network sees it. Compiles once for each padded size.

    Attributes:
      logits: `(variables, image (1, *spatial, c)) -> logits (1, *spatial, k)`.
      check_size: raises ValueError for a `spatial` that the network does not take.
      mesh: its axis `depth` shares the image; along `data` everyone does the same.
      window: predicts images that the network cannot take whole.
      flips: test-time flips, see `windows.flip_axes`.
      activation: a key of `losses.ACTIVATIONS`.
    """

    logits: Callable[[Any, jax.Array], jax.Array]
    check_size: Callable[[Sequence[int]], None]
    mesh: jax.sharding.Mesh
    window: SlidingWindow
    flips: bool | Sequence[int] = False
    activation: str = "sigmoid"

    def __call__(self, variables: Any, image: np.ndarray) -> np.ndarray:
        """Probabilities `(*spatial, k)` float32 of an image `(*spatial, c)`."""
        try:
            size = padded_size(self.check_size, image.shape[:-1])
        except ConfigError as error:
            print(f"{error}; this image is predicted in windows", file=sys.stderr)
            return self.window(variables, image)
        axes = flip_axes(self.flips, image.ndim - 1)
        total = sum(self._predict(variables, image, size, combination) for combination in axes)
        return total / len(axes)

    def _predict(self, variables, image, size, axes) -> np.ndarray:
        shards = self.mesh.shape["depth"]
        low = [(wanted - n) // 2 for n, wanted in zip(image.shape, size, strict=False)]
        inside = tuple(slice(lo, lo + n) for lo, n in zip(low, image.shape[:-1], strict=True))
        depth = -(-size[0] // shards) * shards
        whole = np.zeros((1, depth, *size[1:], image.shape[-1]), np.float32)
        view = whole[0, : size[0]]
        view[inside] = image
        view[...] = np.flip(view, axes)
        placed = jax.make_array_from_callback(whole.shape, self._placement, whole.__getitem__)
        result = np.asarray(self._probabilities(variables, placed, size[0]))[0]
        return np.flip(result, axes)[inside]

    @property
    def _placement(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(None, "depth"))

    @functools.cached_property
    def _probabilities(self):
        def probabilities(variables, image, depth):
            logits = self.logits(variables, image[:, :depth]).astype(jnp.float32)
            return ACTIVATIONS[self.activation](logits)

        # A copy on every device: the host reads the result, and only its own devices.
        return jax.jit(probabilities, static_argnums=2, out_shardings=replicated(self.mesh))

    def compiled(self, variables: Any, spatial: Sequence[int], channels: int):
        """The executable for images `(*spatial, channels)`, whose memory can be asked for."""
        size = padded_size(self.check_size, spatial)
        shards = self.mesh.shape["depth"]
        shape = (1, -(-size[0] // shards) * shards, *size[1:], channels)
        image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self._placement)
        return self._probabilities.lower(variables, image, size[0]).compile()


def padded_size(
    check_size: Callable[[Sequence[int]], None], spatial: Sequence[int]
) -> tuple[int, ...]:
    """The smallest size, not below `spatial`, that the network takes.

    Raises ConfigError, saying what it takes, if there is none.
    """
    plane = tuple(-(-n // PLANE) * PLANE for n in spatial[1:])
    refused = None
    for depth in range(spatial[0], spatial[0] + DEEPEST_PADDING):
        try:
            check_size((depth, *plane))
            return (depth, *plane)
        except ValueError as error:
            refused = refused or error
    raise ConfigError(f"an image {tuple(spatial)} does not fit whole: {refused}")
