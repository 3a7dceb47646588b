"""Windows cut, weighted and summed on the device: an image goes there once, and comes back once."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.inference.windows import Windows, flip_axes, gaussian_window
from crossdim_jax.runtime.sharding import replicated

SHARE = 0.25  # of a device's memory that an image and its sums may take


def fit(image: tuple[int, ...], classes: int, device: jax.Device) -> bool:
    """True if an image `(*spatial, c)` and sums over so many classes fit on the device beside a
    network.

    False for a CPU, whose memory is the host's, and for a device that does not say what it has.
    """
    statistics = device.memory_stats() if device.platform != "cpu" else None
    limit = (statistics or {}).get("bytes_limit", 0)
    voxels = int(np.prod(image[:-1]))
    return 4 * voxels * (image[-1] + classes + 1) <= SHARE * limit


def predict(
    windows: Windows,
    probabilities: Callable[[jax.Array], jax.Array],
    image: np.ndarray,
    classes: int,
    sharding: jax.sharding.NamedSharding | None,
) -> np.ndarray:
    """`windows(probabilities, image)`, up to the rounding of its sums.

    Nothing is waited for between the windows. Besides the network's program there are two small
    ones for each size of image.

    Args:
      windows: how the image is cut up.
      probabilities: `(window_batch, *patch, c) -> (window_batch, *patch, k)`, arrays of the device.
      image: `(*spatial, c)`, prepared for the network.
      classes: k.
      sharding: of a window batch; None for one device.
    """
    padded, inside = windows.padded(image)
    everywhere = None if sharding is None else replicated(sharding.mesh)

    def placed(array: np.ndarray) -> jax.Array:
        if everywhere is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)

    cut, add = _programs(windows.patch, sharding, everywhere)
    whole, weights = placed(padded), placed(gaussian_window(windows.patch)[..., None])
    sums = (
        placed(np.zeros((*padded.shape[:-1], classes), np.float32)),
        placed(np.zeros((*padded.shape[:-1], 1), np.float32)),
    )
    combinations = flip_axes(windows.flips, len(windows.patch))
    for chunk in windows.starts(padded.shape[:-1]):
        filled = [*chunk, *chunk[-1:] * (windows.window_batch - len(chunk))]
        starts, count = placed(np.array(filled, np.int32)), placed(np.int32(len(chunk)))
        batch, result = cut(whole, starts), None
        for axes in combinations:
            axes = tuple(axis + 1 for axis in axes)
            part = jnp.flip(probabilities(jnp.flip(batch, axes)), axes)
            result = part if result is None else result + part
        sums = add(sums, weights, result / len(combinations), starts, count)
    return np.asarray(sums[0] / sums[1])[inside]


@functools.cache
def _programs(patch: tuple[int, ...], sharding, everywhere) -> tuple[Callable, Callable]:
    """Programs that cut a batch of windows out of an image, and that add their probabilities."""

    def cut(image, starts):
        size = (*patch, image.shape[-1])
        return jax.vmap(lambda start: jax.lax.dynamic_slice(image, (*start, 0), size))(starts)

    def add(sums, weights, result, starts, count):
        def one(i, sums):  # in the order in which the host adds them
            weight = jnp.where(i < count, weights, 0.0)
            parts = weight * result[i], weight
            return tuple(
                _added(total, part, starts[i]) for total, part in zip(sums, parts, strict=True)
            )

        return jax.lax.fori_loop(0, len(starts), one, sums)

    return (
        jax.jit(cut, out_shardings=sharding),
        jax.jit(add, out_shardings=everywhere, donate_argnums=0),
    )


def _added(total: jax.Array, part: jax.Array, start: jax.Array) -> jax.Array:
    at = (*start, 0)
    there = jax.lax.dynamic_slice(total, at, part.shape)
    return jax.lax.dynamic_update_slice(total, there + part, at)
