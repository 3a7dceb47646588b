import functools
import types

import jax
import numpy as np
import pytest

from crossdim_jax.errors import ConfigError
from crossdim_jax.runtime import sharding
from tests import toy


@pytest.mark.parametrize(
    ("data", "depth", "shape"), [(-1, 1, (4, 1)), (-1, 2, (2, 2)), (1, 3, (1, 3))]
)
def test_mesh_shapes(data, depth, shape):
    mesh = sharding.make_mesh(data, depth)
    assert mesh.axis_names == ("data", "depth") and mesh.devices.shape == shape


@pytest.mark.parametrize(
    ("data", "depth", "says"),
    [
        (-1, 3, "fits: 1, 2, 4"),
        (4, 2, "needs 8 devices, found 4"),
        (0, 1, "data=-1"),
        (1, 0, "depth"),
    ],
)
def test_impossible_meshes_are_refused(data, depth, says):
    with pytest.raises(ConfigError, match=says):
        sharding.make_mesh(data, depth)


@pytest.mark.parametrize(("processes", "fits"), [((0, 0, 1, 1), "1, 2"), ((0, 1, 2, 3), "1$")])
def test_the_depth_is_not_cut_between_processes(monkeypatch, processes, fits):
    """Each process would feed volumes of its own, taken for parts of deeper ones."""

    def make(shape, *_, devices, **__):
        return types.SimpleNamespace(devices=np.reshape(np.array(devices, object), shape))

    monkeypatch.setattr(jax, "make_mesh", make)
    devices = [types.SimpleNamespace(process_index=index) for index in processes]
    with pytest.raises(ConfigError, match=f"depth=4 would cut.*fits: {fits}"):
        sharding.make_mesh(1, 4, devices=devices)
    assert sharding.make_mesh(4, 1, devices=devices).devices.shape == (4, 1)
    if processes == (0, 0, 1, 1):
        assert sharding.make_mesh(2, 2, devices=devices).devices.shape == (2, 2)


@pytest.mark.parametrize("processes", [(0, 0, 1, 1), (1, 1, 0, 0), (0, 1, 1, 0)])
def test_each_process_reads_what_lies_on_its_devices(monkeypatch, processes):
    """Whatever the order of a mesh's rows: the parts, laid where jax lays them, are the batch."""
    whole = np.arange(8)
    devices = [types.SimpleNamespace(process_index=index) for index in processes]
    mesh = types.SimpleNamespace(devices=np.reshape(np.array(devices, object), (4, 1)))
    laid = np.full(8, -1)
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        part = iter(whole[sharding.batch_positions(mesh, 8)].reshape(2, 2))
        for row, owner in enumerate(processes):
            if owner == process:  # as jax.make_array_from_process_local_data: ascending
                laid[2 * row : 2 * row + 2] = next(part)
    np.testing.assert_array_equal(laid, whole)


def test_a_batch_is_cut_along_batch_and_depth():
    array = np.arange(4 * 8 * 3 * 3 * 1, dtype=np.float32).reshape(4, 8, 3, 3, 1)
    placed = sharding.shard_batch({"image": array}, sharding.make_mesh(2, 2))["image"]
    np.testing.assert_array_equal(placed, array)
    assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 4, 3, 3, 1)}


@pytest.mark.parametrize(
    ("batch", "depth", "accumulate", "says"),
    [
        (3, 8, 1, "fits: 2 or 4"),
        (4, 9, 1, "fits: 8 or 10"),
        (6, 8, 2, "fits: 4 or 8"),
        (1, 8, 1, "fits: 2$"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(batch, depth, accumulate, says):
    mesh = sharding.make_mesh(2, 2)
    with pytest.raises(ConfigError, match=says):
        sharding.check_batch(mesh, batch, (depth, 8, 8), accumulate=accumulate)


@pytest.mark.parametrize(
    ("size", "devices", "says"),
    [(128, 3, "fits: 96 or 192$"), (32, 3, "fits: 96$"), (97, 2, "fits: 98$")],
)
def test_a_depth_that_fits_suits_the_network_too(size, devices, says):
    def check_size(spatial):
        if spatial[0] % 32 if size % 32 == 0 else not 97 <= spatial[0] <= 144:
            raise ValueError

    mesh = sharding.make_mesh(1, devices)
    with pytest.raises(ConfigError, match=says):
        sharding.check_batch(mesh, 1, (size, 64, 64), check_size=check_size)
    with pytest.raises(ConfigError, match="fits: none near it"):
        sharding.check_batch(mesh, 1, (size, 64, 64), check_size=never)


def never(spatial):
    raise ValueError


@functools.cache
def two_updates(model, data=1, depth=1, accumulate=1):
    """State and metrics after two steps, a sync of slow and fast weights at the second."""
    mesh = sharding.make_mesh(data, depth)
    state, step, mesh = toy.make_run(model, mesh=mesh, accumulate=accumulate, sync_period=2)
    for seed in range(2):
        image, target = toy.make_arrays(seed, 4)
        state, metrics = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
    return jax.device_get((state, metrics))


def assert_same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), one, other)


# A batch norm's statistics are of the global batch, and dropout draws the same masks.
@pytest.mark.parametrize(("data", "depth", "norm"), [(4, 1, False), (1, 4, True), (2, 2, True)])
def test_many_devices_make_the_update_of_one(data, depth, norm):
    model = toy.ToyNet(norm=norm, rate=0.3)
    assert_same(two_updates(model, data, depth), two_updates(model))


@pytest.mark.parametrize(("data", "depth"), [(1, 1), (2, 2)])
def test_accumulated_micro_batches_make_the_update_of_the_whole(data, depth):
    whole = two_updates(toy.ToyNet())
    assert_same(two_updates(toy.ToyNet(), data, depth, accumulate=2), whole)


def test_parameters_are_on_every_device():
    state, step, mesh = toy.make_run(mesh=sharding.make_mesh(2, 2))
    image, target = toy.make_arrays(0, 4)
    state, _ = step(state, sharding.shard_batch({"image": image, "target": target}, mesh))
    for leaf in jax.tree.leaves(state):
        assert leaf.sharding.is_fully_replicated and len(leaf.sharding.device_set) == 4
