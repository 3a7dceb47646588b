"""The operations on four devices, one volume shared along depth, equal those on one device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from crossdim_jax import ops
from crossdim_jax.runtime import sharding


def fold(x, kernel, up):
    """Any skip of the right shape will do."""
    skip, bias = ops.upsample_conv(x, up), kernel[0, 0, 0, 0, :4]
    return ops.up_concat_conv(x, skip, up, bias, kernel, mode="fast", min_coarse_voxels=0)


STRIDES = {"strides": (1, 1, 1), "padding": ((1, 1),) * 3, "mode": "fast"}
STRIDES_2 = {"strides": (2, 2, 2), "padding": ((0, 1),) * 3, "mode": "fast"}
FOLDED = "up, concat, conv"  # "auto" does not fold a volume that is shared
OPERATIONS = {
    "conv": (lambda x, k: ops.conv(x, k, **STRIDES), (3, 3, 3, 4, 6)),
    "conv, stride 2": (lambda x, k: ops.conv(x, k, **STRIDES_2), (3, 3, 3, 4, 6)),
    "depthwise": (lambda x, k: ops.depthwise_conv(x, k, **STRIDES), (3, 3, 3, 1, 4)),
    "depthwise, stride 2": (lambda x, k: ops.depthwise_conv(x, k, **STRIDES_2), (3, 3, 3, 1, 4)),
    "transposed": (ops.upsample_conv, (2, 2, 2, 4, 6)),
    "instance norm": (
        lambda x, k: ops.instance_norm(x, k, k, eps=1e-5, activation="silu"),
        (4,),
    ),
    FOLDED: (lambda x, k: fold(x, k, k[:2, :2, :2, :4, :4]), (3, 3, 3, 8, 4)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_four_devices_equal_one(rng, name):
    operation, shape = OPERATIONS[name]
    x = jnp.asarray(rng.normal(size=(1, 8, 6, 4, 4)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=shape), jnp.float32)

    def value_and_gradient(x, kernel):
        y, pull = jax.vjp(operation, x, kernel)
        return y, *pull(jnp.cos(y))

    one = jax.jit(value_and_gradient)(x, kernel)
    mesh = sharding.make_mesh(1, 4)
    along_depth = NamedSharding(mesh, PartitionSpec("data", "depth"))
    four = jax.jit(value_and_gradient, in_shardings=(along_depth, sharding.replicated(mesh)))
    four = four.lower(x, kernel).compile()
    if name != FOLDED:
        assert not re.search(r" (all-gather|all-to-all)(-start)?\(", four.as_text())
    for ours, reference in zip(four(x, kernel), one, strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-5 * scale)
