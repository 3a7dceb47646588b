"""Augmentation of training batches, on the device: one affine for image and target, and intensity.

Messaoudi et al. 2023, Sect. 3.1.2 lists scaling, rotation, translation, shearing, window width and
level, and Gaussian noise, each with probability 0.5, and no ranges: those below are our choice.
Everything that moves a voxel is one matrix, so an image is interpolated once. One body of code for
2D and 3D; lengths are in voxels of the patch, so slices should have square pixels.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ranges
from crossdim_jax.errors import ConfigError

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# Of the key of a step: dropout has the numbers from 0, one for each micro-batch.
STREAM = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Settings:
    """How much an image may change; 0 turns a change off.

    Attributes:
      probability: with which each change but flips is made, independently of the others.
      scale: sizes from 1 - scale to 1 + scale, the same along all axes.
      rotation_deg: up to so many degrees either way, in each plane of two axes.
      translation: up to this fraction of the patch along each axis.
      shear: up to this tangent, in each plane.
      window_width: contrast from 1 - window_width to 1 + window_width times.
      window_level: brightness, up to so much either way, in units of the (z-scored) image.
      noise: standard deviation up to this.
      flip: axes that are mirrored, each with probability 0.5; 0 is the first spatial one.
    """

    probability: float = 0.5
    scale: float = 0.2
    rotation_deg: float = 15.0
    translation: float = 0.1
    shear: float = 0.1
    window_width: float = 0.2
    window_level: float = 0.2
    noise: float = 0.1
    flip: tuple[int, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, object], ndim: int) -> "Settings":
        """From a config's section, for patches of `ndim` axes.

        Raises ConfigError: a setting is unknown or out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(settings) - known):
            raise ConfigError(
                f"config.augment has no setting {', '.join(unknown)}; known: {', '.join(known)}"
            )
        found = cls(**{**settings, "flip": tuple(settings.get("flip", ()))})
        ranges.check("augment", **dataclasses.asdict(found))
        if any(axis not in range(ndim) for axis in found.flip):
            raise ConfigError(
                f"config.augment.flip is {found.flip}; a patch has the axes 0 to {ndim - 1}"
            )
        return found

    @property
    def active(self) -> bool:
        """Whether anything may change."""
        return self.probability > 0 or bool(self.flip)


class Change(NamedTuple):
    """What is done to each sample of a batch.

    A voxel of the result at o comes from `matrix @ (o - centre) + centre + offset`, where the
    centre is that of the patch.

    Attributes:
      matrix: (b, n, n). offset: (b, n), voxels.
      gain, level, noise: (b,); image * gain + level, plus noise of that standard deviation.
    """

    matrix: jax.Array
    offset: jax.Array
    gain: jax.Array
    level: jax.Array
    noise: jax.Array


def make(settings: Settings) -> Augment:
    """The pure function `(key, image (b, *spatial, c), target (b, *spatial, k)) -> the same`.

    To be called under jit. What lies outside the patch is taken to be as its border, for the image
    as for the target, so a one-hot target stays one.
    """

    def augment(key, image, target):
        drawing, noise = jax.random.split(key)
        change = draw(drawing, image.shape[0], image.shape[1:-1], settings)
        return apply(noise, change, image, target)

    return augment


def draw(key: jax.Array, batch: int, spatial: Sequence[int], settings: Settings) -> Change:
    """Draws the changes of a batch of patches of size `spatial`."""
    n = len(spatial)
    keys = iter(jax.random.split(key, 14))
    planes = list(itertools.combinations(range(n), 2))

    def uniform(shape, limit):
        """Within +- limit, and 0 for the samples that are spared; (b, *shape)."""
        amount = jax.random.uniform(next(keys), (batch, *shape), minval=-limit, maxval=limit)
        hit = jax.random.bernoulli(next(keys), settings.probability, (batch,))
        return jnp.where(hit.reshape((batch,) + (1,) * len(shape)), amount, 0.0)

    size = 1.0 + uniform((), settings.scale)
    angles = uniform((len(planes),), np.deg2rad(settings.rotation_deg))
    offset = uniform((n,), settings.translation) * jnp.asarray([spatial], jnp.float32)
    shears = uniform((len(planes),), settings.shear)
    gain = 1.0 + uniform((), settings.window_width)
    level = uniform((), settings.window_level)
    noise = jnp.abs(uniform((), settings.noise))
    mirrored = jax.random.bernoulli(jax.random.fold_in(key, STREAM), 0.5, (batch, n))
    may = np.isin(np.arange(n), settings.flip)[None]
    signs = jnp.where(mirrored & may, -1.0, 1.0)
    matrix = jnp.broadcast_to(jnp.eye(n), (batch, n, n))
    for index, (a, b) in enumerate(planes):
        matrix = _product(matrix, _rotation(angles[:, index], n, a, b))
    for index, (a, b) in enumerate(planes):
        shear = jnp.broadcast_to(jnp.eye(n), (batch, n, n)).at[:, a, b].set(shears[:, index])
        matrix = _product(matrix, shear)
    # The way back, from the result to the source: a larger image has nearer sources.
    matrix = matrix / size[:, None, None] * signs[:, None, :]
    return Change(matrix, offset, gain, level, noise)


def apply(
    key: jax.Array, change: Change, image: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Makes the changes; of the key comes the noise.

    The image is interpolated linearly, the target takes the nearest voxel's values.
    """
    image, target = jax.vmap(_resample)(image, target, change.matrix, change.offset)
    one = (image.shape[0],) + (1,) * (image.ndim - 1)
    noise = jax.random.normal(key, image.shape, image.dtype) * change.noise.reshape(one)
    return image * change.gain.reshape(one) + change.level.reshape(one) + noise, target


def _resample(image, target, matrix, offset) -> tuple[jax.Array, jax.Array]:
    """One sample: (*spatial, c) and (*spatial, k) at the places that the matrix says."""
    spatial = image.shape[:-1]
    n = len(spatial)
    centres = [(length - 1) / 2 for length in spatial]
    axes = [
        (jnp.arange(length) - centre).reshape([-1 if i == axis else 1 for i in range(n)])
        for axis, (length, centre) in enumerate(zip(spatial, centres, strict=True))
    ]
    # Sums of products rather than a matrix product, which some devices round to 10 bits.
    places = [
        jnp.clip(
            offset[i] + centres[i] + sum(matrix[i, j] * axes[j] for j in range(n)),
            0,
            spatial[i] - 1,
        )
        for i in range(n)
    ]
    strides = [int(np.prod(spatial[i + 1 :])) for i in range(n)]

    def gather(array, indices):
        flat = sum(index * stride for index, stride in zip(indices, strides, strict=True))
        rows = array.reshape(-1, array.shape[-1])
        return rows.at[flat].get(mode="promise_in_bounds")

    lower = [jnp.floor(place).astype(jnp.int32) for place in places]
    rest = [place - low for place, low in zip(places, lower, strict=True)]
    result = jnp.zeros_like(image)
    for corner in itertools.product((0, 1), repeat=n):
        indices, weight = [], 1.0
        for up, low, part, length in zip(corner, lower, rest, spatial, strict=True):
            indices.append(jnp.minimum(low + up, length - 1))
            weight = weight * (part if up else 1 - part)
        result = result + gather(image, indices) * weight[..., None]
    nearest = [jnp.floor(place + 0.5).astype(jnp.int32) for place in places]
    nearest = [
        jnp.minimum(index, length - 1) for index, length in zip(nearest, spatial, strict=True)
    ]
    return result, gather(target, nearest)


def _rotation(angle: jax.Array, n: int, a: int, b: int) -> jax.Array:
    """(b,) radians -> (b, n, n), turning axis a towards axis b."""
    eye = jnp.broadcast_to(jnp.eye(n), (angle.shape[0], n, n))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    eye = eye.at[:, a, a].set(cos).at[:, b, b].set(cos)
    return eye.at[:, a, b].set(-sin).at[:, b, a].set(sin)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products in full precision."""
    return jnp.sum(left[:, :, :, None] * right[:, None, :, :], axis=2)
