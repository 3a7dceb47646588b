"""Every operation agrees with its reference: optimised, in bf16, under vmap and checkpoint."""

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import ops
from tests.ops.agreement import OPTIMISED, assert_same, value_and_gradients


def convolution(operation, mode):
    def apply(x, kernel):
        nd = x.ndim - 2
        return operation(x, kernel, strides=(2,) * nd, padding=((0, 1),) * nd, mode=mode)

    return apply


def norm(function):
    return lambda x, scale, bias: function(x, scale, bias, eps=1e-3, activation="silu")


def fold(*arrays):
    return ops.up_concat_conv(*arrays, mode="fast", min_coarse_voxels=0)


# Name: ours, the reference, shapes of the tensors after the batch axis and of the parameters, for
# nd axes and c channels.
OPERATIONS = {
    "dense": (
        convolution(ops.conv, "fast"),
        convolution(ops.conv, "lax"),
        lambda nd, c: [((6, 5, 4)[:nd], c)],
        lambda nd, c: [(*(3,) * nd, c, 3)],
    ),
    "depthwise": (
        convolution(ops.depthwise_conv, "fast"),
        convolution(ops.depthwise_conv, "lax"),
        lambda nd, c: [((6, 5, 4)[:nd], c)],
        lambda nd, c: [(*(3,) * nd, 1, c)],
    ),
    "grouped": (
        convolution(ops.grouped_conv, "fast"),
        convolution(ops.grouped_conv, "lax"),
        lambda nd, c: [((6, 5, 4)[:nd], 2 * c)],
        lambda nd, c: [(*(3,) * nd, 2, 3 * c)],
    ),
    "transposed": (
        ops.upsample_conv,
        ops.upsample_conv_lax,
        lambda nd, c: [((3, 2, 4)[:nd], c)],
        lambda nd, c: [(*(2,) * nd, c, 3)],
    ),
    "up, concat, conv": (
        fold,
        ops.up_concat_conv_reference,
        lambda nd, c: [((3, 2, 4)[:nd], c), ((6, 4, 8)[:nd], 3)],
        lambda nd, c: [(*(2,) * nd, c, 2), (2,), (*(3,) * nd, 5, 4)],
    ),
    "norm and SiLU": (
        norm(ops.instance_norm),
        norm(ops.instance_norm_reference),
        lambda nd, c: [((6, 5, 4)[:nd], c)],
        lambda nd, c: [(c,), (c,)],
    ),
}

# Name: batch, channels, dtype, tolerance. Bfloat16 keeps 8 bits, and the forms round differently.
CONDITIONS = {
    "optimised": (2, 4, jnp.float32, 1e-4),
    "vmap of checkpoint": (1, 4, jnp.float32, 1e-4),
    "vmap": (2, 3, jnp.float32, 1e-4),
    "checkpoint": (1, 4, jnp.float32, 1e-4),
    "bf16": (1, 5, jnp.bfloat16, 3e-2),
}


# `make test` meets vmap and checkpoint in one program, and images in the one that users run.
TOGETHER = ("optimised", "vmap of checkpoint", "bf16")
RANKS = [
    pytest.param(
        c, nd, marks=() if c in TOGETHER and nd == 3 or c == "optimised" else pytest.mark.slow
    )
    for c in CONDITIONS
    for nd in (2, 3)
]


@pytest.mark.parametrize(("condition", "nd"), RANKS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_agrees_with_its_reference(rng, name, condition, nd):
    ours, reference, tensors, parameters = OPERATIONS[name]
    batch, channels, dtype, rtol = CONDITIONS[condition]
    lanes = (2,) if "vmap" in condition else ()
    shapes = [(*lanes, batch, *spatial, c) for spatial, c in tensors(nd, channels)]
    count, shapes = len(shapes), shapes + parameters(nd, channels)
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]

    def under(f):
        f = jax.checkpoint(f) if "checkpoint" in condition else f
        if "vmap" in condition:
            return jax.vmap(f, (0,) * count + (None,) * (len(arrays) - count))
        return f

    options = OPTIMISED if condition == "optimised" else None
    expected, found = (
        value_and_gradients(under(f), *arrays, compiler_options=options) for f in (reference, ours)
    )
    assert_same(found, expected, rtol)
