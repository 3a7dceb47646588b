"""Augmentation: laws that any change must keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from crossdim_jax.data import augment
from crossdim_jax.data.augment import AUGMENTATIONS, Augmentation, Change, Settings
from crossdim_jax.errors import ConfigError
from crossdim_jax.ranges import real

OFF = {row.name: 0.0 for row in AUGMENTATIONS}
INTENSITIES = [row.name for row in AUGMENTATIONS if row.recolour]
SIZES = [(9, 12), (5, 6, 8)]
run = jax.jit(augment.apply)


def batch(rng, spatial, b=2, c=2, k=3):
    image = rng.normal(size=(b, *spatial, c)).astype(np.float32)
    target = np.eye(k, dtype=np.uint8)[rng.integers(k, size=(b, *spatial))]
    return jnp.asarray(image), jnp.asarray(target)


def settings_of(probability=1.0, flip=(), **limits):
    """All augmentations off but those given."""
    return Settings(probability, flip, {**OFF, **limits})


def draw(key, b, spatial, settings):
    """`augment.draw` as one program."""
    return jax.jit(lambda key: augment.draw(key, b, spatial, settings))(key)


def change(b, n, matrix=None, offset=None, **amounts):
    matrix = np.eye(n) if matrix is None else matrix
    offset = np.zeros(n) if offset is None else offset
    repeated = [jnp.asarray(np.stack([v] * b), jnp.float32) for v in (matrix, offset)]
    amounts = {**dict.fromkeys(INTENSITIES, 0.0), **amounts}
    return Change(*repeated, {name: jnp.full(b, v, jnp.float32) for name, v in amounts.items()})


@pytest.mark.parametrize("spatial", SIZES)
def test_no_change_is_exactly_the_identity(rng, spatial):
    image, target = batch(rng, spatial)
    same = run(jax.random.key(0), change(2, len(spatial)), image, target)
    np.testing.assert_array_equal(same[0], image)
    np.testing.assert_array_equal(same[1], target)
    drawn = draw(jax.random.key(3), 2, spatial, settings_of())
    np.testing.assert_array_equal(drawn.matrix, change(2, len(spatial)).matrix)
    np.testing.assert_array_equal(drawn.offset, 0)


@pytest.mark.parametrize("spatial", SIZES)
def test_an_affine_is_that_of_scipy(rng, spatial):
    n = len(spatial)
    image, target = batch(rng, spatial)
    angle = np.deg2rad(20)
    matrix = np.eye(n) * 1.1
    matrix[-2:, -2:] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    matrix[0, -1] += 0.1
    offset = np.array([0.3, -1.7, 2.2])[-n:]
    found = run(jax.random.key(0), change(2, n, matrix, offset), image, target)
    centre = (np.array(spatial) - 1) / 2
    origin = centre + offset - matrix @ centre
    for sample in range(2):
        for channel in range(image.shape[-1]):
            expected = ndimage.affine_transform(
                np.asarray(image[sample, ..., channel], np.float64),
                matrix, origin, order=1, mode="nearest",
            )  # fmt: skip
            np.testing.assert_allclose(found[0][sample, ..., channel], expected, atol=1e-4)
        for channel in range(target.shape[-1]):
            expected = ndimage.affine_transform(
                np.asarray(target[sample, ..., channel]), matrix, origin, order=0, mode="nearest"
            )
            np.testing.assert_array_equal(found[1][sample, ..., channel], expected)


def test_a_translation_moves_by_whole_pixels(rng):
    image, target = batch(rng, (9, 12))
    moved, label = run(jax.random.key(0), change(2, 2, offset=[2, -3]), image, target)
    np.testing.assert_array_equal(moved[:, :-2, 3:], image[:, 2:, :-3])
    np.testing.assert_array_equal(label[:, :-2, 3:], target[:, 2:, :-3])


@pytest.mark.parametrize("spatial", SIZES)
def test_image_and_target_move_together_and_classes_stay_disjoint(rng, spatial):
    """An image that shows its own target shows it after any change, up to interpolation."""
    blocks = rng.integers(3, size=(4, *(n // 3 + 1 for n in spatial)))
    for axis, length in enumerate(spatial, 1):
        blocks = np.take(blocks.repeat(3, axis), np.arange(length), axis)
    target = jnp.asarray(np.eye(3, dtype=np.uint8)[blocks])
    image = target.astype(jnp.float32)
    settings = settings_of(
        flip=tuple(range(len(spatial))), scale=0.2, rotation_deg=30.0, translation=0.1, shear=0.2
    )
    moved, label = jax.jit(augment.make(settings))(jax.random.key(1), image, target)
    assert label.dtype == target.dtype and (label != target).any()
    np.testing.assert_array_equal(label.sum(-1), 1)
    # The weight of the nearest voxel is at least 1/2 to the power of the axes.
    assert float(jnp.min(jnp.sum(moved * label, -1))) >= 0.5 ** len(spatial) - 1e-5
    agree = jnp.argmax(moved, -1) == jnp.argmax(label, -1)
    assert float(agree.mean()) > 0.9


def test_intensity_changes_leave_place_and_target_alone(rng):
    image, target = batch(rng, (9, 12))
    scaled, label = run(
        jax.random.key(0), change(2, 2, window_width=0.5, window_level=-0.25), image, target
    )
    np.testing.assert_allclose(scaled, 1.5 * image - 0.25, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(label, target)
    image, target = batch(rng, (64, 64))
    noisy, label = run(jax.random.key(0), change(2, 2, noise=0.3), image, target)
    assert float(jnp.std(noisy - image)) == pytest.approx(0.3, rel=0.03)
    np.testing.assert_array_equal(label, target)


@pytest.mark.parametrize("spatial", SIZES)
def test_a_flip_is_an_exact_mirror_of_some_axes(rng, spatial):
    n = len(spatial)
    image, target = batch(rng, spatial, b=8)
    settings = settings_of(0.0, flip=(n - 1,))
    flipped, label = jax.jit(augment.make(settings))(jax.random.key(2), image, target)
    mirrored = 0
    for before, after, old, new in zip(image, flipped, target, label, strict=True):
        turned = not np.array_equal(before, after)
        mirrored += turned
        axes = (n - 1,) if turned else ()
        np.testing.assert_array_equal(after, jnp.flip(before, axes))
        np.testing.assert_array_equal(new, jnp.flip(old, axes))
    assert 0 < mirrored < 8


def test_ranges_are_kept_and_each_change_comes_with_its_probability():
    settings = settings_of(0.3, translation=0.25, window_width=0.5)
    drawn = draw(jax.random.key(0), 2000, (40, 80), settings)
    moved, changed = (drawn.offset != 0).any(-1), drawn.amounts["window_width"] != 0
    for hit in (moved, changed, changed[moved]):  # the last: they are independent
        assert float(hit.mean()) == pytest.approx(0.3, abs=0.06)
    largest = np.abs(drawn.offset).max(0)
    assert (largest <= [10, 20]).all() and (largest > [9, 18]).all()
    assert float(jnp.abs(drawn.amounts["window_width"]).max()) <= 0.5
    np.testing.assert_array_equal(drawn.matrix, jnp.broadcast_to(jnp.eye(2), (2000, 2, 2)))


def test_a_larger_scale_enlarges_and_keeps_the_centre():
    settings = settings_of(scale=0.2)
    drawn = draw(jax.random.key(0), 500, (8, 8), settings)
    sizes = 1 / np.asarray(drawn.matrix[:, 0, 0])
    assert sizes.min() >= 0.8 - 1e-6 and sizes.max() <= 1.2 + 1e-6 and sizes.std() > 0.05
    np.testing.assert_allclose(drawn.matrix[:, 1, 1], drawn.matrix[:, 0, 0])


def test_the_same_key_gives_the_same_and_another_does_not(rng):
    image, target = batch(rng, (9, 12))
    function = jax.jit(augment.make(Settings(probability=1.0)))
    first, again, other = (function(jax.random.key(s), image, target)[0] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_augmentation_is_added_by_one_row(rng, monkeypatch):
    """Drawn, applied, ranged and known to configs; the others draw what they drew before."""
    image, target = batch(rng, (9, 12))
    key, everything = jax.random.key(4), Settings(probability=1.0)
    before = jax.jit(augment.make(everything))(key, image, target)[0]
    row = Augmentation("curve", 0.0, real("[0, 1]"), recolour=lambda x, a, _: x + a * x**2)
    monkeypatch.setattr(augment, "AUGMENTATIONS", (*AUGMENTATIONS, row))
    monkeypatch.setattr(augment, "RANGES", {**augment.RANGES, "augment.curve": row.range})
    off = Settings.of({"probability": 1.0}, 2)
    np.testing.assert_array_equal(jax.jit(augment.make(off))(key, image, target)[0], before)
    on = Settings.of({"probability": 1.0, "curve": 0.5}, 2)
    drawing, _ = jax.random.split(key)
    curve = draw(drawing, 2, (9, 12), on).amounts["curve"].reshape(2, 1, 1, 1)
    after = jax.jit(augment.make(on))(key, image, target)[0]
    np.testing.assert_allclose(after, before + curve * before**2, rtol=1e-5, atol=1e-5)
    assert (jnp.abs(curve) > 0).all()
    with pytest.raises(ConfigError, match="augment.curve=2"):
        Settings.of({"curve": 2.0}, 2)


def test_what_a_config_cannot_mean_is_refused():
    assert not Settings.of({"probability": 0.0}, 2).active
    assert Settings.of({"flip": [0, 1, 2], "probability": 0.0}, 3).active
    for wrong, text in (
        ({"zoom": 1.0}, "no setting zoom; known: .*scale"),
        ({"probability": 1.5}, "probability=1.5: expected .* at most 1"),
        ({"scale": 1.0}, "scale=1.0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"flip": (2,)}, r"flip is \(2,\); a patch has the axes 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=text):
            Settings.of(wrong, 2)
