"""Augmentation of training batches, on the device: one affine for image and target, and intensity.

Messaoudi et al. 2023, Sect. 3.1.2 lists scaling, rotation, translation, shearing, window width and
level, and Gaussian noise, each with probability 0.5, and no ranges: those below are our choice.
Everything that moves a voxel is one matrix, so an image is interpolated once. One body of code for
2D and 3D; lengths are in voxels of the patch, so slices should have square pixels.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ranges
from crossdim_jax.errors import ConfigError
from crossdim_jax.ranges import real

Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]

# Stream of the key of a step: dropout has the numbers from 0, one for each micro-batch.
STREAM = 2**31 - 1


class Place(NamedTuple):
    """Origin of the voxels of a result, before flips.

    A voxel at o comes from `matrix / zoom @ (o - centre) + centre + offset`, where the centre is
    that of the patch.

    Attributes:
      matrix: (b, n, n).
      zoom: (b,), above 1 for a larger image, whose sources are nearer.
      offset: (b, n), voxels.
    """

    matrix: jax.Array
    zoom: jax.Array
    offset: jax.Array


def _rotate(place: Place, angles_deg: jax.Array, spatial: Sequence[int]) -> Place:
    n, matrix, angles = len(spatial), place.matrix, angles_deg
    for index, (a, b) in enumerate(_planes(n)):
        matrix = _product(matrix, _rotation(angles[:, index], n, a, b))
    return place._replace(matrix=matrix)


def _shear(place: Place, tangents: jax.Array, spatial: Sequence[int]) -> Place:
    n, matrix = len(spatial), place.matrix
    for index, (a, b) in enumerate(_planes(n)):
        shear = jnp.broadcast_to(jnp.eye(n), matrix.shape).at[:, a, b].set(tangents[:, index])
        matrix = _product(matrix, shear)
    return place._replace(matrix=matrix)


def _translate(place: Place, fraction: jax.Array, spatial: Sequence[int]) -> Place:
    voxels = fraction * jnp.asarray([spatial], jnp.float32)
    return place._replace(offset=place.offset + voxels)


def _scale(place: Place, amount: jax.Array, spatial: Sequence[int]) -> Place:
    del spatial
    return place._replace(zoom=place.zoom * (1.0 + amount))


def _noise(image: jax.Array, deviation: jax.Array, key: jax.Array) -> jax.Array:
    return image + jax.random.normal(key, image.shape, image.dtype) * jnp.abs(deviation)


class Augmentation(NamedTuple):
    """Augmentation: a row of `AUGMENTATIONS`.

    Its amount is drawn for each sample of a batch, uniformly within +- a limit, which is the field
    of this name in a config's section `augment`; samples that are spared have the amount 0, which
    must change nothing.

    Attributes:
      name: of the field.
      default: limit where a config says nothing; 0 for off.
      range: of the limit.
      move: `(place, amount (b, ...), spatial) -> place`, for what moves voxels.
      recolour: `(image, amount (b, 1, ..., 1), key) -> image`, for what changes intensities. Rows
        that need random numbers of their own fold a number of their own into the key.
      amounts: number of amounts of a sample, from the number of axes; None for one without an axis.
      factor: from the field's unit to that of the amount.
    """

    name: str
    default: float
    range: ranges.Number
    move: Callable[[Place, jax.Array, Sequence[int]], Place] | None = None
    recolour: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    amounts: Callable[[int], int] | None = None
    factor: float = 1.0


def _planes(n: int) -> list[tuple[int, int]]:
    """Pairs of axes."""
    return list(itertools.combinations(range(n), 2))


def _n_planes(n: int) -> int:
    return len(_planes(n))


_SD = "standard deviations of the image"  # which is z-scored
# Applied in this order, which also decides the random numbers of each: new rows go to the end.
AUGMENTATIONS = (
    # Sizes from 1 - scale to 1 + scale, the same along all axes.
    Augmentation("scale", 0.2, real("[0, 0.9]"), move=_scale),
    # In each plane of two axes.
    Augmentation(
        "rotation_deg",
        15.0,
        real("[0, 360]", "degrees"),
        move=_rotate,
        amounts=_n_planes,
        factor=np.deg2rad(1.0),
    ),
    # Along each axis.
    Augmentation(
        "translation", 0.1, real("[0, 10]", "of the patch"), move=_translate, amounts=lambda n: n
    ),
    # In each plane.
    Augmentation("shear", 0.1, real("[0, 100]", "a tangent"), move=_shear, amounts=_n_planes),
    # Contrast, from 1 - window_width to 1 + window_width times.
    Augmentation(
        "window_width",
        0.2,
        real("[0, 0.9]"),
        recolour=lambda image, share, _: image * (1 + share),
    ),
    # Brightness.
    Augmentation(
        "window_level",
        0.2,
        real("[0, 1000]", _SD),
        recolour=lambda image, amount, _: image + amount,
    ),
    # Gaussian, of a standard deviation up to the limit.
    Augmentation("noise", 0.1, real("[0, 1000]", _SD), recolour=_noise),
)
RANGES = {f"augment.{row.name}": row.range for row in AUGMENTATIONS}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the changes of an image.

    Attributes:
      probability: with which each change but flips is made, independently of the others.
      flip: axes that are mirrored, each with probability 0.5; 0 is the first spatial one.
      limits: largest amount of each of `AUGMENTATIONS` by name; 0 turns one off.
    """

    probability: float = 0.5
    flip: tuple[int, ...] = ()
    limits: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {row.name: row.default for row in AUGMENTATIONS}
    )

    @classmethod
    def of(cls, section: Mapping[str, object], ndim: int) -> "Settings":
        """Settings from a config's section `augment`, for patches of `ndim` axes.

        Raises ConfigError: a setting is unknown or out of range.
        """
        default = cls()
        known = ("probability", *default.limits, "flip")
        if unknown := sorted(set(section) - set(known)):
            raise ConfigError(
                f"config.augment has no setting {', '.join(unknown)}; known: {', '.join(known)}"
            )
        probability = section.get("probability", default.probability)
        flip = tuple(section.get("flip", default.flip))
        limits = {name: section.get(name, limit) for name, limit in default.limits.items()}
        values = {"probability": probability, "flip": flip, **limits}
        fields = {f"augment.{name}": value for name, value in values.items()}
        ranges.refuse(text for _, text in ranges.problems(fields, RANGES))
        if any(axis not in range(ndim) for axis in flip):
            raise ConfigError(
                f"config.augment.flip is {flip}; a patch has the axes 0 to {ndim - 1}"
            )
        return cls(probability, flip, limits)

    @property
    def active(self) -> bool:
        """True if anything may change."""
        return self.probability > 0 or bool(self.flip)


class Change(NamedTuple):
    """Change of each sample of a batch.

    Attributes:
      matrix, offset: (b, n, n) and (b, n): a voxel of the result at o comes from
        `matrix @ (o - centre) + centre + offset`.
      amounts: (b,) of each augmentation of intensities, by name.
    """

    matrix: jax.Array
    offset: jax.Array
    amounts: dict[str, jax.Array]


def make(settings: Settings) -> Augment:
    """Pure function `(key, image (b, *spatial, c), target (b, *spatial, k)) -> (image, target)`.

    To be called under jit. What lies outside the patch is taken to be as its border, for the image
    as for the target, so a one-hot target stays one. Equal settings give the same function.
    """
    return _made(settings.probability, settings.flip, tuple(settings.limits.items()))


@functools.lru_cache
def _made(
    probability: float, flip: tuple[int, ...], limits: tuple[tuple[str, float], ...]
) -> Augment:
    settings = Settings(probability, flip, dict(limits))

    def augment(key, image, target):
        drawing, noise = jax.random.split(key)
        change = draw(drawing, image.shape[0], image.shape[1:-1], settings)
        return apply(noise, change, image, target)

    return augment


def draw(key: jax.Array, batch: int, spatial: Sequence[int], settings: Settings) -> Change:
    """Draws the changes of a batch of patches of size `spatial`."""
    n = len(spatial)
    amounts = _amounts(key, batch, n, settings)
    identity = jnp.broadcast_to(jnp.eye(n), (batch, n, n))
    place = Place(identity, jnp.ones(batch), jnp.zeros((batch, n)))
    for row in AUGMENTATIONS:
        if row.move is not None:
            place = row.move(place, amounts.pop(row.name), spatial)
    mirrored = jax.random.bernoulli(jax.random.fold_in(key, STREAM), 0.5, (batch, n))
    may = np.isin(np.arange(n), settings.flip)[None]
    signs = jnp.where(mirrored & may, -1.0, 1.0)
    matrix = place.matrix / place.zoom[:, None, None] * signs[:, None, :]
    return Change(matrix, place.offset, amounts)


def _amounts(key: jax.Array, batch: int, n: int, settings: Settings) -> dict[str, jax.Array]:
    """Amount of each augmentation, (b,) or (b, number); 0 for the samples that are spared."""
    keys = iter(jax.random.split(key, 2 * len(AUGMENTATIONS)))
    drawn = {}
    for row in AUGMENTATIONS:
        shape = () if row.amounts is None else (row.amounts(n),)
        limit = row.factor * settings.limits[row.name]
        amount = jax.random.uniform(next(keys), (batch, *shape), minval=-limit, maxval=limit)
        hit = jax.random.bernoulli(next(keys), settings.probability, (batch,))
        drawn[row.name] = jnp.where(hit.reshape((batch,) + (1,) * len(shape)), amount, 0.0)
    return drawn


def apply(
    key: jax.Array, change: Change, image: jax.Array, target: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Applies the changes; the key gives the noise.

    The image is interpolated linearly, the target takes the nearest voxel's values.
    """
    image, target = jax.vmap(_resample)(image, target, change.matrix, change.offset)
    one = (image.shape[0],) + (1,) * (image.ndim - 1)
    for row in AUGMENTATIONS:
        if row.recolour is not None:
            image = row.recolour(image, change.amounts[row.name].reshape(one), key)
    return image, target


def _resample(image, target, matrix, offset) -> tuple[jax.Array, jax.Array]:
    """Resamples image (*spatial, c) and target (*spatial, k) of one sample by its affine."""
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
    """Rotations (b, n, n) by angles (b,) in radians, from axis a towards axis b."""
    eye = jnp.broadcast_to(jnp.eye(n), (angle.shape[0], n, n))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    eye = eye.at[:, a, a].set(cos).at[:, b, b].set(cos)
    return eye.at[:, a, b].set(-sin).at[:, b, a].set(sin)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Matrix products (b, n, n) in full precision."""
    return jnp.sum(left[:, :, :, None] * right[:, None, :, :], axis=2)
