"""Repeat, concatenate, convolve as one: exact in value and gradient, for every pair of sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax import ops
from tests.ops.agreement import assert_same, value_and_gradients


@pytest.mark.parametrize(("n", "size"), [(3, 11), (43, 128), (22, 43), (4, 4), (5, 13), (1, 3)])
def test_nearest_takes_the_voxel_that_the_position_falls_into(rng, n, size):
    x = jnp.asarray(rng.normal(size=(2, n, 3, 2)), jnp.float32)
    found = ops.nearest(x, (size, 6))
    np.testing.assert_array_equal(
        found, np.asarray(x)[:, np.arange(size) * n // size][:, :, np.arange(6) // 2]
    )


def test_nearest_does_not_make_grids_smaller():
    with pytest.raises(ValueError, match="4 voxels are to become 3"):
        ops.nearest(jnp.zeros((1, 4, 1)), (3,))


@pytest.mark.parametrize(
    ("coarse", "fine", "c_skip"),
    [
        ((3, 4, 5), (6, 8, 10), 5),
        ((3, 4), (6, 8), 5),
        ((1, 2), (2, 4), 0),
        ((3, 4, 5), (11, 4, 5), 5),
        ((5, 2, 3), (13, 2, 3), 0),
        ((3, 2, 3), (3, 4, 6), 5),
    ],
)
def test_folded_equals_step_by_step(rng, coarse, fine, c_skip):
    nd = len(coarse)
    with jax.enable_x64(True):
        shapes = (2, *coarse, 3), (2, *fine, c_skip), (*(3,) * nd, 3 + c_skip, 6)
        arguments = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
        ours, reference = (
            value_and_gradients(f, *arguments)
            for f in (
                lambda *a: ops.nearest_concat_conv(*a, mode="fast", min_coarse_voxels=0),
                ops.nearest_concat_conv_reference,
            )
        )
        assert_same(ours, reference, 1e-10)
