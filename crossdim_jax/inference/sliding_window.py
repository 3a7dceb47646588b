"""Sliding-window inference by a network in JAX: arrays in, arrays out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.inference import device_sums
from crossdim_jax.inference.windows import Windows
from crossdim_jax.losses import ACTIVATIONS
from crossdim_jax.runtime.sharding import replicated

Variables = Any  # a Flax variable tree


@functools.lru_cache
def as_slices(logits: Callable[[Variables, jax.Array], jax.Array]) -> Callable:
    """Apply a 2D network to windows of one slice: `(b, 1, y, x, c) -> (b, 1, y, x, k)`."""

    def apply(variables, windows):
        return logits(variables, windows[:, 0])[:, None]

    return apply


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Predictor of whole images with a network that takes patches.

    The network compiles once: every window batch has the same shape, the last one filled up; flips
    run through the same program. Sums are kept in float32: on the device where they fit, see
    `device_sums.fit`, else on the host, so that images of any size can be predicted.

    Attributes:
      logits: `(variables, windows (b, *patch, c)) -> logits (b, *patch, k)`.
      patch: window size in voxels.
      overlap: fraction of a window shared with its neighbour, in [0, 1).
      flips: test-time flips, see `windows.flip_axes`.
      window_batch: windows per call of the network.
      activation: a key of `losses.ACTIVATIONS`.
      sharding: of a window batch, to spread it over devices; if they are of several processes,
        each calls with the same image and gets the whole result.
      classes: k, so that sums can be kept on the device; None keeps them on the host.

    Raises:
      ConfigError: `overlap`, `window_batch` or a flip axis is out of range.
    """

    logits: Callable[[Variables, jax.Array], jax.Array]
    patch: tuple[int, ...]
    overlap: float = 0.5
    flips: bool | Sequence[int] = False
    window_batch: int = 1
    activation: str = "sigmoid"
    sharding: jax.sharding.NamedSharding | None = None
    classes: int | None = None

    def __post_init__(self):
        _ = self._windows  # which checks what it is given

    @functools.cached_property
    def _windows(self) -> Windows:
        return Windows(self.patch, self.overlap, self.flips, self.window_batch)

    @property
    def _probabilities(self) -> Callable:
        mesh = None if self.sharding is None else self.sharding.mesh
        return _program(self.logits, self.activation, mesh)

    def __call__(self, variables: Variables, image: np.ndarray) -> np.ndarray:
        """Probabilities `(*spatial, k)` float32 of an image `(*spatial, c)`.

        An image smaller than the patch is padded with zeros, and cropped back.
        """
        if self.classes is not None and device_sums.fit(image.shape, self.classes, self._device):
            probabilities = functools.partial(self._probabilities, variables)
            return device_sums.predict(
                self._windows, probabilities, image, self.classes, self.sharding
            )
        return self._windows(functools.partial(self._from_host, variables), image)

    def compiled(self, variables: Variables, channels: int):
        """The executable for a window batch, whose memory can be asked for."""
        return self._probabilities.lower(variables, self._batch(channels)).compile()

    @property
    def _device(self) -> jax.Device:
        mesh = None if self.sharding is None else self.sharding.mesh
        return jax.local_devices()[0] if mesh is None else mesh.local_devices[0]

    def _batch(self, channels: int) -> jax.ShapeDtypeStruct:
        shape = (self.window_batch, *self.patch, channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.sharding)

    def _from_host(self, variables: Variables, windows: np.ndarray) -> np.ndarray:
        if self.sharding is not None:
            windows = jax.make_array_from_callback(
                windows.shape, self.sharding, windows.__getitem__
            )
        return np.asarray(self._probabilities(variables, windows))


@functools.lru_cache(maxsize=8)
def _program(logits: Callable, activation: str, mesh: jax.sharding.Mesh | None) -> Callable:
    """Compiled `(variables, windows) -> probabilities`; predictors of the same network share it."""

    def probabilities(variables, windows):
        return ACTIVATIONS[activation](logits(variables, windows).astype(jnp.float32))

    # A copy on every device: the host reads the result, and only its own devices.
    return jax.jit(probabilities, **({} if mesh is None else {"out_shardings": replicated(mesh)}))
