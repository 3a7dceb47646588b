"""Every fast form equals the plain `lax` form, in value and gradient."""

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import ops
from tests.ops.agreement import assert_same, value_and_gradients

SHAPES = [
    # spatial, window, stride, padding
    ((5, 7, 6), 3, 1, "same"),
    ((5, 7, 6), 3, 2, "same"),
    ((6, 8, 9), 3, 2, "symmetric"),
    ((7, 7, 7), 5, 2, "symmetric"),
    ((8, 6, 7), 5, 1, "same"),
    ((4, 3, 5), 1, 1, "same"),
    ((1, 2, 1), 5, 1, "same"),
    ((1, 1, 1), 1, 1, "same"),
    ((1, 1), 1, 2, "symmetric"),
    ((9, 6), 3, 2, "same"),
    ((9, 6), 5, 1, "symmetric"),
]


@pytest.fixture
def x64():
    """Float64 arithmetic, where rounding cannot hide a wrong formula."""
    with jax.enable_x64(True):
        yield


# Dense 3D takes another form by shape: many channels, large grids, few input channels, several
# blocks of rows.
DENSE = {
    "scattered taps": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 1, 1), ((1, 1),) * 3),
    "gathered taps": ((2, 9, 10, 11, 2), (3, 3, 3, 2, 8), (1, 1, 1), ((1, 1),) * 3),
    "four slices": ((1, 8, 5, 6, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((1, 1),) * 3),
    "fours, one left": ((2, 13, 3, 4, 33), (3, 2, 3, 33, 32), (1, 1, 1), ((1, 1), (1, 0), (1, 1))),
    "fours, cropped": ((1, 11, 5, 4, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((-1, 0), (1, 1), (1, 1))),
    "fours, blocks": ((1, 7, 11, 84, 32), (3, 3, 3, 32, 33), (1, 1, 1), ((1, 1),) * 3),
    "pairs of slices": ((1, 6, 5, 6, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((1, 1),) * 3),
    "pairs, one left": ((2, 5, 5, 6, 33), (3, 2, 3, 33, 32), (1, 1, 1), ((1, 1), (1, 0), (1, 1))),
    "pairs, uneven": ((1, 6, 5, 6, 32), (3, 3, 3, 32, 34), (1, 1, 1), ((3, 2), (0, 1), (1, 1))),
    "pairs, cropped": ((1, 9, 7, 6, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((-1, -2), (1, 1), (1, 1))),
    "pairs, one in all": ((1, 3, 9, 8, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((0, 0), (1, 1), (1, 1))),
    "pairs, blocks": ((1, 5, 11, 84, 32), (3, 3, 3, 32, 32), (1, 1, 1), ((1, 1),) * 3),
    "patches": ((1, 2, 3, 2, 3), (3, 3, 3, 3, 16), (1, 1, 1), ((1, 1), (0, 2), (3, 1))),
    "a row per block, and one left": ((2, 16, 7, 40, 3), (3, 3, 3, 3, 2), (1, 1, 1), ((1, 1),) * 3),
    "several blocks": ((2, 16, 6, 70, 3), (3, 3, 3, 3, 2), (1, 1, 1), ((1, 1),) * 3),
    "even window": ((1, 9, 10, 11, 3), (2, 2, 2, 3, 4), (1, 1, 1), ((1, 0), (0, 1), (1, 1))),
    "no padding": ((1, 9, 10, 11, 4), (3, 2, 3, 4, 4), (1, 1, 1), ((0, 0),) * 3),
    "cropped": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 1, 1), ((-1, 1), (1, -1), (0, -2))),
    "gathered taps, uneven": (
        (1, 9, 9, 9, 5),
        (3, 2, 3, 5, 7),
        (1, 1, 1),
        ((2, 0), (0, 1), (1, 2)),
    ),
    "stride 2": ((1, 19, 20, 21, 3), (5, 3, 3, 3, 4), (2, 2, 2), ((2, 1), (0, 1), (1, 1))),
    "stride in the plane": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (1, 2, 2), ((1, 1),) * 3),
    "stride along depth": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (2, 1, 1), ((1, 1),) * 3),
    "stride 3": ((1, 9, 10, 11, 3), (3, 3, 3, 3, 4), (3, 1, 1), ((1, 1),) * 3),
}


# Their forms are met in the other cases too.
MET = ("scattered taps", "gathered taps", "four slices", "pairs of slices", "several blocks")
MET += ("pairs, blocks",)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in MET else ()) for n in DENSE]
)
def test_every_dense_form_equals_lax(x64, rng, name):
    shape, kernel_shape, strides, padding = DENSE[name]
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in (shape, kernel_shape))

    def form(mode):
        return lambda x, k: ops.conv(x, k, strides=strides, padding=padding, mode=mode)

    reference = value_and_gradients(form("lax"), x, kernel)
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, 1e-10)


@pytest.mark.parametrize("strides", [(1, 2, 2), (2, 1, 2), (3, 1, 1), (4, 2, 1)], ids=str)
def test_depthwise_strides_may_differ_by_axis(x64, rng, strides):
    """A stride larger than the window leaves voxels that nothing sees: their gradient is 0."""
    x, kernel = jnp.asarray(rng.normal(size=(2, 9, 8, 7, 3))), rng.normal(size=(3, 3, 3, 1, 3))

    def form(mode):
        return lambda x, k: ops.depthwise_conv(
            x, k, strides=strides, padding=((1, 1), (0, 1), (1, 0)), mode=mode
        )

    reference = value_and_gradients(form("lax"), x, jnp.asarray(kernel))
    ours = value_and_gradients(form("fast"), x, jnp.asarray(kernel))
    assert_same(ours, reference, 1e-10)


# The kernel's gradient takes blocks of a slice: several, an incomplete one, one for all.
DEPTHWISE_BLOCKS = {
    "blocks of rows": ((2, 3, 9, 7, 2), (3, 3, 3), (1, 1, 1)),
    "a row per block": ((1, 2, 3, 16, 2), (3, 3, 3), (1, 1, 1)),
    "several per row": ((1, 2, 3, 37, 2), (3, 5, 3), (1, 1, 1)),
    "with strides": ((1, 5, 9, 41, 2), (5, 3, 5), (2, 2, 2)),
    "in the plane": ((2, 9, 37, 2), (3, 5), (1, 2)),
}


@pytest.mark.parametrize("name", DEPTHWISE_BLOCKS)
def test_depthwise_blocks(x64, rng, name):
    shape, window, strides = DEPTHWISE_BLOCKS[name]
    x, kernel = (jnp.asarray(rng.normal(size=s)) for s in (shape, (*window, 1, shape[-1])))
    padding = ops.explicit_padding(shape[1:-1], window, strides, "same")

    def form(mode):
        return lambda x, k: ops.depthwise_conv(x, k, strides=strides, padding=padding, mode=mode)

    reference = value_and_gradients(form("lax"), x, kernel)
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, 1e-10)


# Input and output channels, batch, and the places in `SHAPES` that `make test` takes: each at
# least once, and for each kind both ranks, strides and paddings and two windows.
KINDS = {
    "dense": (3, 4, 2, (2, 6, 9)),
    "depthwise": (5, 5, 1, (0, 3, 7, 8, 10)),
    "grouped": (6, 9, 2, (1, 4, 5, 8, 9)),
}


@pytest.mark.parametrize(
    "kind,place",
    [
        pytest.param(kind, place, marks=() if place in often else pytest.mark.slow)
        for kind, (*_, often) in KINDS.items()
        for place in range(len(SHAPES))
    ],
)
def test_fast_equals_lax(x64, rng, kind, place):
    (spatial, window, stride, padding), (c_in, c_out, batch, _) = SHAPES[place], KINDS[kind]
    nd = len(spatial)
    x = jnp.asarray(rng.normal(size=(batch, *spatial, c_in)))
    groups_in = {"dense": c_in, "grouped": 2, "depthwise": 1}[kind]
    kernel = jnp.asarray(rng.normal(size=(*(window,) * nd, groups_in, c_out)))
    strides = (stride,) * nd
    pad = ops.explicit_padding(spatial, kernel.shape[:nd], strides, padding)
    op = {"dense": ops.conv, "grouped": ops.grouped_conv, "depthwise": ops.depthwise_conv}[kind]

    def form(mode):
        return lambda x, k: op(x, k, strides=strides, padding=pad, mode=mode)

    reference = value_and_gradients(form("lax"), x, kernel)
    assert_same(value_and_gradients(form("fast"), x, kernel), reference, 1e-10)


@pytest.mark.parametrize(
    "spatial,window",
    [
        ((3, 4, 5), (2, 1, 2)),
        ((3, 4, 5), (1, 2, 2)),
        ((3, 4), (2, 2)),
        ((3, 4), (1, 2)),
        ((1, 1, 2), (2, 2, 2)),
    ],
    ids=str,
)
def test_upsample_conv_equals_transposed_convolution(x64, rng, spatial, window):
    x = jnp.asarray(rng.normal(size=(2, *spatial, 3)))
    kernel = jnp.asarray(rng.normal(size=(*window, 3, 4)))
    reference = value_and_gradients(ops.upsample_conv_lax, x, kernel)
    assert_same(value_and_gradients(ops.upsample_conv, x, kernel), reference, 1e-10)


@pytest.mark.parametrize("convention,total", [("same", (0, 1)), ("symmetric", (1, 1))])
def test_padding_conventions_differ_at_stride_two(convention, total):
    assert ops.explicit_padding((8,), (3,), (2,), convention) == (total,)


@pytest.mark.parametrize(
    "spatial,c_in,c_out",
    [((5, 6, 7), 4, 3), ((5, 6), 8, 16), ((5, 6), 5, 8), ((5, 6, 7), 16, 2)],
    ids=str,
)
def test_channels_filled_up_change_nothing(x64, rng, spatial, c_in, c_out):
    x = jnp.asarray(rng.normal(size=(2, *spatial, c_in)))
    kernel = jnp.asarray(rng.normal(size=(*(3,) * len(spatial), c_in, c_out)))
    strides, padding = (2,) * len(spatial), ((0, 1),) * len(spatial)

    def aligned(x, k):
        return ops.conv_aligned(x, k, strides, padding, 8)

    reference = value_and_gradients(lambda x, k: ops.conv_lax(x, k, strides, padding), x, kernel)
    assert_same(value_and_gradients(aligned, x, kernel), reference, 1e-10)


def test_channels_are_filled_up_for_bfloat16_on_a_gpu_only(monkeypatch):
    assert ops.channel_multiple(jnp.dtype("float32"), backend="gpu") == 1
    assert ops.channel_multiple(jnp.dtype("bfloat16"), backend="cpu") == 1
    x, kernel = jnp.ones((1, 4, 4, 4, 4), jnp.bfloat16), jnp.ones((3, 3, 3, 4, 3), jnp.bfloat16)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    program = jax.make_jaxpr(lambda x, k: ops.conv(x, k, strides=(1, 1, 1), padding=((1, 1),) * 3))(
        x, kernel
    )
    (convolution,) = (e for e in program.eqns if e.primitive.name == "conv_general_dilated")
    assert convolution.invars[1].aval.shape == (3, 3, 3, 8, 8)
    assert program.out_avals[0].shape == (1, 4, 4, 4, 3)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="auto, lax, fast"):
        ops.choose("quick")
    with pytest.raises(ValueError, match="same, symmetric"):
        ops.explicit_padding((8,), (3,), (1,), "valid")


def test_auto_is_fast_on_cpu_only_and_does_not_fold_a_shared_volume():
    assert ops.choose("auto", backend="cpu") == "fast"
    assert ops.choose("auto", backend="cpu", depth_shards=2) == "unfolded"
    assert ops.choose("auto", backend="gpu") == "lax"
    assert ops.choose("lax", backend="cpu") == "lax"


def test_no_groups_of_slices_where_devices_share_the_depth():
    """And none in a short type."""

    def products(mode, dtype):
        x, kernel = (jnp.zeros(s, dtype) for s in ((1, 8, 5, 6, 32), (3, 3, 3, 32, 32)))
        options = {"strides": (1, 1, 1), "padding": ((1, 1),) * 3, "mode": mode}
        step = jax.value_and_grad(lambda k, x: ops.conv(x, k, **options).sum(), argnums=(0, 1))
        text = str(jax.make_jaxpr(step)(kernel, x))
        return text.count("conv_general_dilated["), text.count("dot_general[")

    assert products("fast", jnp.float32) == (12, 6)
    assert products("unfolded", jnp.float32) == products("fast", jnp.bfloat16)
    assert products("unfolded", jnp.float32)[1] == 1
