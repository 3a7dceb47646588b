"""The laws of cross-dimensional weights, each on a whole encoder and a volume that is no cube."""

import dataclasses
import functools

import numpy as np
import pytest

from crossdim_jax import ops
from crossdim_jax.weights import inflate
from crossdim_jax.weights.recipe import Recipe, stem_path
from tests.weight_port import tiny
from weight_port import forward
from weight_port.convert import convert
from weight_port.volume import sum_over_depth, unchanged_slices

DEPTH, PLANE = 18, (32, 48)
EPS = 1e-3
DEEP = Recipe(ndim=3, in_channels=3, norm="batch", inflate="mean", stem="tile")
EXACT = ("mean", "center", "gaussian")


@pytest.fixture(scope="module", autouse=True)
def _encoders():
    with tiny.registered():
        yield
    source.cache_clear()


@functools.cache
def source(architecture="efficientnet_tiny"):
    return tiny.source(architecture)


def flat_recipe(recipe):
    return Recipe(2, recipe.in_channels, recipe.norm, None, recipe.stem)


def run(recipe, x, *, architecture="efficientnet_tiny", eps=EPS, arrays=None, **settings):
    """Features (b, *spatial, c) of the network that the recipe makes.

    By `ops_mode` "lax" it is compiled in a third of the time; that the formulations agree is tested
    elsewhere.
    """
    arrays = arrays or convert(source(architecture), recipe).arrays
    if recipe.ndim == 3:
        settings |= {"depth_kernels": recipe.depth_kernels, "factorised": recipe.factorised}
    shared = {"norm": recipe.norm, "padding": "same", "eps": eps, "ops_mode": "lax"}
    return forward.features(architecture, arrays, x, **shared | settings)


@pytest.fixture
def image(rng):
    return rng.normal(size=(1, *PLANE, 3)).astype(np.float32)


def constant(image):
    return np.repeat(image[:, None], DEPTH, axis=1)


def errors(deep, flat):
    """Relative error of each feature, every slice against the 2D one."""
    pairs = zip(deep, flat, strict=True)
    return [forward.relative_error(d, np.broadcast_to(f[:, None], d.shape)) for d, f in pairs]


# ------------------------------------------------------------------ a depth-constant volume


# Each mode, and each network once; `make test-all` has all pairs.
NETWORKS = [("batch", False), ("instance", False), ("batch", True), ("group", False)]
OFTEN = {(*NETWORKS[0], mode) for mode in EXACT}
OFTEN |= {(*NETWORKS[1], "mean"), (*NETWORKS[2], "gaussian")}


@pytest.mark.parametrize(
    ("norm", "factorised", "mode"),
    [
        pytest.param(*network, mode, marks=() if (*network, mode) in OFTEN else pytest.mark.slow)
        for network in NETWORKS
        for mode in EXACT
    ],
)
def test_depth_constant_volume_equals_2d_with_edge_padding(norm, factorised, mode, image):
    recipe = dataclasses.replace(DEEP, norm=norm, inflate=mode, factorised=factorised)
    deep = run(recipe, constant(image), depth_padding="edge")
    assert [f.shape[1] for f in deep] == [9, 5, 3, 2, 1]
    assert max(errors(deep, run(flat_recipe(recipe), image))) < 2e-5


@pytest.mark.parametrize(
    "depth_kernels",
    [*(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2)), (1, 3, 5, 4, 1, 3)],
    ids=str,
)
@pytest.mark.parametrize("mode", EXACT)
def test_the_law_does_not_hang_on_the_depth_window(mode, depth_kernels, image):
    recipe = dataclasses.replace(DEEP, inflate=mode, depth_kernels=depth_kernels)
    deep = run(recipe, constant(image), depth_padding="edge")
    assert max(errors(deep, run(flat_recipe(recipe), image))) < 2e-5


def test_reflected_ends_are_as_good_as_repeated_ones(image):
    """Computed as users' networks are."""
    as_users = {"depth_strides": 1, "ops_mode": "auto"}
    deep = run(DEEP, constant(image), depth_padding="reflect", **as_users)
    assert max(errors(deep, run(flat_recipe(DEEP), image))) < 2e-5


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_center_equals_2d_with_zero_padding_too(norm, image):
    recipe = dataclasses.replace(DEEP, inflate="center", norm=norm)
    deep = run(recipe, constant(image), depth_padding="zero")
    assert max(errors(deep, run(flat_recipe(recipe), image))) < 2e-5


@pytest.mark.parametrize("mode", ["mean", "gaussian"])
def test_zero_padding_changes_the_ends_only(mode, image):
    """Without pooling over the volume, slices that do not see the ends are those of 2D."""
    recipe = dataclasses.replace(DEEP, inflate=mode)
    plain = {"architecture": "efficientnet_tiny_plain", "depth_padding": "zero"}
    volume = np.repeat(image[:, None], 34, axis=1)
    marked = volume.copy()
    marked[:, [0, -1]] += 1
    deep = run(recipe, volume, **plain)
    inside = [*map(unchanged_slices, deep, run(recipe, marked, **plain))]
    assert [int(i.sum()) for i in inside] == [15, 5, 1, 0, 0]
    flat = run(flat_recipe(recipe), image, architecture=plain["architecture"])
    for i, feature in enumerate(deep[:3]):
        assert max(errors([feature[:, inside[i]]], flat[i : i + 1])) < 2e-5
        assert max(errors([feature[:, -1:]], flat[i : i + 1])) > 1e-2


def test_zero_padding_reaches_everything_through_a_norm_of_its_own_statistics(image):
    """Why `mean` promises nothing there: the norm's statistics take in the ends."""
    recipe = dataclasses.replace(DEEP, norm="instance")
    deep = run(recipe, constant(image), depth_padding="zero")
    flat = run(flat_recipe(recipe), image)
    assert min(errors([f[:, f.shape[1] // 2][:, None] for f in deep], flat)) > 1e-3


@pytest.mark.parametrize("mode", ["repeat", "sqrt"])
def test_instance_norm_undoes_the_factor_up_to_eps(mode, image):
    """... and BatchNorm's running statistics do not."""
    recipe = dataclasses.replace(DEEP, norm="instance", inflate=mode)
    departures = []
    for eps in (EPS, 1e-9):
        deep = run(recipe, constant(image), depth_padding="edge", eps=eps)
        departures.append(max(errors(deep, run(flat_recipe(recipe), image, eps=eps))))
    assert departures[0] > 1e-3 and departures[1] < 1e-4
    arrays = convert(source(), dataclasses.replace(recipe, norm="batch", statistics="reestimate"))
    carried = dataclasses.replace(DEEP, norm="batch")
    deep = run(carried, constant(image), depth_padding="edge", arrays=arrays.arrays)
    assert min(errors(deep, run(flat_recipe(carried), image))) > 0.1


@pytest.mark.parametrize("mode", sorted(inflate.INFLATE))
def test_edge_padding_gives_the_2d_network_of_the_kernels_sums_in_every_mode(mode, image):
    made = convert(source(), dataclasses.replace(DEEP, inflate=mode, statistics="reestimate"))
    deep = run(DEEP, constant(image), depth_padding="edge", arrays=made.arrays)
    flat = run(flat_recipe(DEEP), image, arrays=sum_over_depth(made.arrays))
    assert max(errors(deep, flat)) < 2e-5


def test_repeat_and_sqrt_are_multiples_of_the_2d_kernel_at_every_tap():
    """The norms above undo any factor, so the factor has a law of its own."""
    flat = convert(source(), flat_recipe(DEEP)).arrays
    windows = 0
    for mode, factor in (("repeat", lambda taps: 1.0), ("sqrt", lambda taps: taps**-0.5)):
        deep = convert(source(), dataclasses.replace(DEEP, norm="instance", inflate=mode)).arrays
        for path, kernel in deep.items():
            if kernel.ndim == 5:
                wanted = flat[path] * factor(kernel.shape[0])
                np.testing.assert_allclose(kernel, np.stack([wanted] * len(kernel)), rtol=1e-6)
                windows += len(kernel) > 1
    assert windows == 2 * 6  # the stem and a depthwise kernel in each of five blocks


# ------------------------------------------------------------------ any volume


@pytest.mark.parametrize("factorised", [False, True], ids=["dense", "factorised"])
def test_center_is_2d_slice_by_slice(factorised, rng):
    """On any volume, up to its ends, where depth is not strided and nothing pools over it."""
    volume = rng.normal(size=(1, 3, *PLANE, 3)).astype(np.float32)
    recipe = dataclasses.replace(DEEP, inflate="center", factorised=factorised)
    plain = "efficientnet_tiny_plain"
    deep = run(recipe, volume, architecture=plain, depth_strides=1)
    assert [f.shape[1] for f in deep] == [3] * 5
    for z in range(3):
        flat = run(flat_recipe(recipe), volume[:, z], architecture=plain)
        assert max(errors([f[:, [z]] for f in deep], flat)) < 2e-5


def test_acs_looks_along_three_axes_alike(rng):
    """With one 2D kernel in all thirds, turning the volume turns one third into the next."""
    kernel = np.tile(rng.normal(size=(3, 3, 4, 2)), (1, 1, 1, 3)).astype(np.float32)
    cube = inflate.inflate(kernel, 3, "acs")
    volume = rng.normal(size=(1, 6, 7, 9, 4)).astype(np.float32)

    def third(i, x):
        out = ops.conv(
            x, cube[..., 2 * i : 2 * i + 2], strides=(1,) * 3, padding=((1, 1),) * 3, mode="lax"
        )
        return np.asarray(out)

    axial = third(0, volume)
    # Axis i of the turned volume is the depth of the plain one; the plane's axes keep their order.
    for i in (1, 2):
        turned = np.moveaxis(third(i, np.moveaxis(volume, 1, 1 + i)), 1 + i, 1)
        np.testing.assert_allclose(turned, axial, rtol=1e-4, atol=1e-5)
    assert forward.relative_error(third(1, volume), axial) > 0.5


# ------------------------------------------------------------------ input channels


POLICIES = [
    *(("gray", n, True) for n in (1, 2, 3, 4, 16)),
    ("sum", 1, True),
    *(("tile", n, n in (3, 6)) for n in (1, 2, 3, 4, 6, 16)),
]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize(("policy", "n", "exact"), POLICIES)
def test_stem_for_grey_input_in_any_number_of_channels(policy, n, exact, ndim):
    """n equal channels give what three equal channels give the source: the stem is linear."""
    recipe = Recipe(ndim, n, "batch", "mean" if ndim == 3 else None, policy)
    found = convert(source(), recipe).arrays
    three = convert(source(), dataclasses.replace(recipe, in_channels=3, stem="tile")).arrays
    stem = stem_path("efficientnet_tiny")
    worst = forward.relative_error(found.pop(stem).sum(-2), three.pop(stem).sum(-2))
    assert worst < 1e-6 if exact else worst > 1e-3
    for path, array in found.items():  # nothing else knows of the channels
        np.testing.assert_array_equal(array, three[path])


@pytest.mark.parametrize(("policy", "exact"), [("gray", True), ("tile", False)])
def test_network_of_grey_input_in_four_channels(policy, exact, rng):
    grey = rng.normal(size=(1, 6, 32, 48, 1)).astype(np.float32)
    recipe = Recipe(3, 4, "batch", "mean", policy)
    found = run(recipe, np.repeat(grey, 4, axis=-1))
    three = run(dataclasses.replace(recipe, in_channels=3, stem="tile"), np.repeat(grey, 3, -1))
    worst = max(forward.relative_error(a, b) for a, b in zip(found, three, strict=True))
    assert worst < 2e-5 if exact else worst > 1e-3
