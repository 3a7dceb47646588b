"""Upsample, concatenate, convolve as one: exact in value and gradient, borders included."""

import jax
import jax.numpy as jnp
import pytest

from crossdim_jax import ops
from tests.ops.agreement import assert_same, value_and_gradients


@pytest.mark.parametrize("coarse", [(3, 4, 5), (1, 1, 1), (2, 1, 3), (3, 4), (1, 2)])
def test_folded_equals_step_by_step(rng, coarse):
    nd = len(coarse)
    with jax.enable_x64(True):
        arguments = [
            jnp.asarray(rng.normal(size=shape))
            for shape in (
                (2, *coarse, 3),
                (2, *(2 * n for n in coarse), 5),
                (*(2,) * nd, 3, 4),
                (4,),
                (*(3,) * nd, 9, 6),
            )
        ]
        ours, reference = (
            value_and_gradients(f, *arguments)
            for f in (
                lambda *a: ops.up_concat_conv(*a, mode="fast", min_coarse_voxels=0),
                ops.up_concat_conv_reference,
            )
        )
        assert_same(ours, reference, 1e-10)


def test_small_grids_and_lax_are_not_folded():
    """Composing the kernels is only worth it on large grids, and only where it was asked for."""
    shapes = [(1, 4, 4, 4, 8), (1, 8, 8, 8, 8), (2, 2, 2, 8, 8), (8,), (3, 3, 3, 16, 8)]
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]

    def joins(mode, least):
        program = jax.make_jaxpr(
            lambda *a: ops.up_concat_conv(*a, mode=mode, min_coarse_voxels=least)
        )(*arguments)
        return any(
            e.primitive.name == "concatenate" and e.outvars[0].aval.shape == (1, 8, 8, 8, 16)
            for e in program.eqns
        )

    assert joins("lax", 0) and joins("fast", 65) and not joins("fast", 64)
