import functools

import jax
import numpy as np
import pytest

from crossdim_jax import losses, models, ops
from crossdim_jax.runtime import sharding
from crossdim_jax.training import initialise, optim
from crossdim_jax.training import step as train
from tests import toy

# Batch and volume. DS-Net's 2D batch norms need more than a pixel at their coarsest.
SHAPES = {"dxnet": (4, 32, 32, 32), "dsnet": (2, 128, 64, 64)}

# Behind batch norms of some hundred pixels, rounding to float32 moves gradients by parts in 1000.
DTYPES = {"dxnet": "float32", "dsnet": "float64"}


@functools.cache
def first_update(name, data, depth):
    """Loss and gradient (as the first moment) of a network on a mesh."""
    with jax.enable_x64(DTYPES[name] == "float64"):
        return _first_update(name, data, depth)


def _first_update(name, data, depth):
    mesh, shape = sharding.make_mesh(data, depth), SHAPES[name]
    mode = ops.choose("auto", depth_shards=depth)
    options = {"drop_path_rate": 0.2, "ops": mode, "dtype": DTYPES[name]}
    model = models.build(name, out_channels=2, **options)
    optimizer = optim.make(sync_period=None)
    state = initialise.init_state(model, optimizer, (1, *shape[1:], 1), mesh, seed=0, say=None)
    step = train.jit_step(train.make_train_step(model, optimizer, losses.dice_bce, seed=0), mesh)
    image, target = toy.make_arrays(0, shape[0], shape[1:])
    state, metrics = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
    return jax.device_get((metrics["loss"], metrics["grad_norm"], state.opt_state[0].mu))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "depth"),
    [("dxnet", 4, 1), ("dxnet", 1, 4), ("dxnet", 2, 2), ("dsnet", 2, 2)],
)
def test_four_devices_have_the_gradient_of_one(name, data, depth):
    loss, norm, one = first_update(name, 1, 1)
    other_loss, other_norm, many = first_update(name, data, depth)
    np.testing.assert_allclose(other_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(other_norm, norm, rtol=1e-4)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(one))
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)
