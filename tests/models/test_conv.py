"""Convolutions: groups, mixtures of kernels, blur, and what is different along depth."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.models.conv import Blur, Conv, Depth

CONVENTIONS = ("same", "symmetric")


def some(rows, *often):
    """All rows, of which `make test` takes `often`."""
    return [pytest.param(*row, marks=() if row in often else pytest.mark.slow) for row in rows]


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


def initial(conv, x, **options):
    return jax.jit(lambda x: conv.init(jax.random.key(0), x, **options))(x)


def applied(conv, variables, x, **options):
    """The output, as one program."""
    return jax.jit(lambda v, x: conv.apply(v, x, **options))(variables, x)


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spatial", [(7, 6), (5, 6, 7)], ids=["2d", "3d"])
def test_a_grouped_convolution_sees_its_own_group_only(spatial, rng):
    x = normal(rng, 1, *spatial, 24)
    conv = Conv(0, 3, 2, group_size=8)
    variables = initial(conv, x)
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (*(3,) * len(spatial), 8, 24)
    y = applied(conv, variables, x)
    for g in range(3):
        part = slice(8 * g, 8 * g + 8)
        alone = applied(Conv(8, 3, 2), {"params": {"kernel": kernel[..., part]}}, x[..., part])
        close(y[..., part], alone)


@pytest.mark.parametrize(
    ("group_size", "window", "spatial"),
    some(
        [(*kind, size) for kind in ((0, 1), (1, 3), (0, 3)) for size in ((7, 6), (5, 6, 7))],
        *((0, 1, (7, 6)), (1, 3, (5, 6, 7)), (0, 3, (5, 6, 7))),
    ),
    ids=str,
)
def test_a_conditional_convolution_mixes_kernels_for_each_sample(group_size, window, spatial, rng):
    x, routing = normal(rng, 3, *spatial, 4), jnp.asarray(rng.uniform(size=(3, 5)), jnp.float32)
    conv = Conv(4, window, 2, group_size=group_size, experts=5)
    variables = initial(conv, x, routing=routing)
    kernels = variables["params"]["kernel"]
    assert kernels.shape[0] == 5
    y = applied(conv, variables, x, routing=routing)
    for b in range(3):
        mixed = jnp.tensordot(routing[b], kernels, 1)
        one = Conv(4, window, 2, group_size=group_size)
        close(y[b : b + 1], applied(one, {"params": {"kernel": mixed}}, x[b : b + 1]))


@pytest.mark.parametrize("size", [8, 9])
def test_blur_keeps_constants_inside_and_halves_the_size(size, rng):
    x = normal(rng, 1, size, size + 2, 3)
    y = Blur(2).apply({}, x)
    assert y.shape == (1, -(-size // 2), -(-(size + 2) // 2), 3)
    taps = np.outer([1, 2, 1], [1, 2, 1]) / 16
    close(y[0, 1, 2, 1], (taps * x[0, 1:4, 3:6, 1]).sum())
    close(y[0, 0, 0, 1], (taps[1:, 1:] * x[0, :2, :2, 1]).sum())  # zeros beyond the border


def test_blur_leaves_an_axis_without_stride_alone(rng):
    x = normal(rng, 1, 5, 8, 8, 2)
    y = Blur(2, Depth(stride=1)).apply({}, x)
    for slice_in, slice_out in zip(jnp.moveaxis(x, 1, 0), jnp.moveaxis(y, 1, 0), strict=True):
        close(slice_out, Blur(2).apply({}, slice_in))


# --- along depth --------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
def test_any_depth_window_and_stride_keeps_ceil_of_the_depth(window, convention):
    for depth, stride, padding in itertools.product((1, 2, 5, 8), (1, 2, 3), ("zero", "edge")):
        conv = Conv(2, 3, 2, convention, depth=Depth(window, stride, padding))
        x = jax.ShapeDtypeStruct((1, depth, 6, 7, 3), jnp.float32)
        y, _ = jax.eval_shape(lambda x: conv.init_with_output(jax.random.key(0), x), x)  # noqa: B023
        assert y.shape == (1, -(-depth // stride), 3, 4, 2)


@pytest.mark.parametrize(
    ("window", "stride", "convention", "padding"),  # by pairs; `make test-all` has all
    some(
        [
            (*along, convention, padding)
            for along in ((2, 1), (3, 1), (3, 2), (5, 2))
            for convention in CONVENTIONS
            for padding in ("edge", "reflect", "zero")
        ],
        *((2, 1, "same", "edge"), (3, 1, "symmetric", "edge"), (3, 2, "same", "zero")),
        *((5, 2, "symmetric", "zero"), (3, 2, "symmetric", "reflect"), (2, 1, "same", "reflect")),
    ),
)
def test_a_depth_constant_volume_gives_the_2d_output_unless_zeros_come_in(
    window, stride, convention, padding, rng
):
    image, kernel = normal(rng, 1, 6, 7, 2), normal(rng, 3, 3, 2, 4)
    flat = applied(Conv(4, 3, 2, convention), {"params": {"kernel": kernel}}, image)
    conv = Conv(4, 3, 2, convention, depth=Depth(window, stride, padding))
    deep = jnp.broadcast_to(kernel / window, (window, *kernel.shape))
    volume = jnp.repeat(image[:, None], 9, 1)
    y = applied(conv, {"params": {"kernel": deep}}, volume)
    expected = jnp.repeat(flat[:, None], y.shape[1], 1)
    inside = slice(2, -2) if padding == "zero" else slice(None)
    close(y[:, inside], expected[:, inside])
    if padding == "zero":
        assert float(jnp.abs(y - expected).max()) > 0.1


def test_depth_padding_does_not_touch_the_plane_nor_2d(rng):
    kernel = normal(rng, 3, 3, 2, 4)
    image, edge = normal(rng, 1, 6, 7, 2), Depth(padding="edge")
    plain, other = (
        Conv(4, depth=d).apply({"params": {"kernel": kernel}}, image) for d in (Depth(), edge)
    )
    np.testing.assert_array_equal(plain, other)


@pytest.mark.parametrize(
    ("window", "stride", "padding", "group_size"),  # by pairs; `make test-all` has all
    some(
        [(*d, p, g) for d in ((2, 1), (3, 2), (5, 1)) for p in ("zero", "edge") for g in (1, 4)],
        *((2, 1, "zero", 1), (3, 2, "edge", 1), (3, 2, "zero", 4), (5, 1, "edge", 4)),
    ),
)
def test_factorised_equals_the_dense_product(window, stride, padding, group_size, rng):
    x = normal(rng, 2, 6, 7, 8, 8)
    depth = Depth(window, stride, padding, factorised=True)
    conv = Conv(0, 3, 2, group_size=group_size, depth=depth)
    variables = initial(conv, x)
    parts = variables["params"]
    assert parts["kernel"].shape == (1, 3, 3, group_size, 8)
    assert parts["depth_kernel"].shape == (window, 1, 1, 1, 8)
    dense = Conv(0, 3, 2, group_size=group_size, depth=Depth(window, stride, padding))
    product = {"params": {"kernel": parts["kernel"] * parts["depth_kernel"]}}
    close(applied(conv, variables, x), applied(dense, product, x))


def test_factorised_draws_with_the_variance_of_dense():
    x = jnp.zeros((1, 4, 4, 4, 4096))

    def variance(factorised):
        conv = Conv(0, 5, group_size=1, depth=Depth(3, factorised=factorised))
        parts = initial(conv, x)["params"]
        return float(np.var(parts["kernel"] * parts.get("depth_kernel", 1.0)))

    assert variance(True) == pytest.approx(variance(False), rel=0.05)


def test_only_grouped_convolutions_with_depth_are_factorised():
    x = jnp.zeros((1, 4, 4, 4, 8))
    flat, dense = Depth(1, factorised=True), Depth(3, factorised=True)
    for conv in (Conv(0, 3, group_size=1, depth=flat), Conv(8, 3, depth=dense)):
        assert set(jax.eval_shape(conv.init, jax.random.key(0), x)["params"]) == {"kernel"}


def test_unknown_depth_padding_lists_the_known_ones():
    with pytest.raises(ValueError, match="zero, edge, reflect"):
        Conv(4, depth=Depth(padding="wrap")).init(jax.random.key(0), jnp.zeros((1, 4, 4, 4, 2)))
