"""The device mesh: batches over `data`, the depth of a volume over `depth`, parameters everywhere.

Arrays are placed with `NamedSharding` on an `Auto` mesh and `jit` does the rest; nothing in the
models, the losses or the step knows how many devices there are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from crossdim_jax.errors import ConfigError

AXES = ("data", "depth")
FARTHEST = 32  # times a depth that does not fit: so far one that does is looked for


def make_mesh(
    data: int = -1, depth: int = 1, *, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of `data x depth` devices.

    Args:
      data: devices that share the samples of a batch; -1 takes all that `depth` leaves.
      depth: devices that share the depth (first spatial axis) of each volume.
      devices: default all; only the first `data * depth` are used.

    Raises ConfigError if there are not enough devices, they do not divide, or the depth would be
    cut between processes.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if depth < 1 or (data < 1 and data != -1):
        raise ConfigError(
            f"mesh data={data}, depth={depth}: expected depth >= 1 and data >= 1, or data=-1 for "
            "all remaining devices"
        )
    if data == -1:
        if count % depth:
            fits = ", ".join(str(d) for d in _divisors(count))
            raise ConfigError(f"mesh depth={depth} does not divide {count} devices; fits: {fits}")
        data = count // depth
    if data * depth > count:
        raise ConfigError(
            f"mesh data={data} x depth={depth} needs {data * depth} devices, found {count}; "
            "lower one of them, or use data=-1 for all remaining devices"
        )
    mesh = jax.make_mesh(
        (data, depth), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices[: data * depth]
    )
    idle = {d.process_index for d in jax.devices()} - {d.process_index for d in mesh.devices.flat}
    if devices == list(jax.devices()) and idle:
        raise ConfigError(
            f"mesh data={data} x depth={depth} has no device of processes {sorted(idle)}, of "
            f"{jax.process_count()}; use data=-1 for all devices, or start fewer processes"
        )
    # A process feeds whole volumes: were a row of two processes, each one's volumes would be taken
    # for half of volumes twice as deep.
    for row in mesh.devices:
        if len(processes := sorted({device.process_index for device in row})) > 1:
            local = sum(device.process_index == processes[0] for device in devices)
            fits = ", ".join(str(d) for d in _divisors(local))
            raise ConfigError(
                f"mesh depth={depth} would cut a volume between processes {processes}; the depth "
                f"can be shared by the devices of one process only, which has {local}; fits: {fits}"
            )
    return mesh


def batch_positions(mesh: Mesh, batch_size: int) -> list[int]:
    """Positions in a global batch of the samples that lie on this process's devices, ascending.

    Rows of a mesh need not be in the order of the processes, nor those of one side by side: on
    some topologies `jax.make_mesh` orders devices by the links between them.
    """
    mine = [row[0].process_index == jax.process_index() for row in mesh.devices]
    return [i for i in range(batch_size) if mine[i * len(mine) // batch_size]]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters and metrics: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batched(mesh: Mesh, ndim: int = 3) -> NamedSharding:
    """The sharding of `(batch, depth, ...)` arrays; with two axes or fewer, of `(batch, ...)`."""
    return NamedSharding(mesh, PartitionSpec(*AXES) if ndim > 2 else PartitionSpec(AXES[0]))


def check_batch(
    mesh: Mesh,
    batch_size: int,
    spatial: Sequence[int],
    *,
    accumulate: int = 1,
    check_size: Callable[[Sequence[int]], None] = lambda spatial: None,
) -> None:
    """Raises ConfigError, naming the sizes that fit, if a global batch does not divide.

    Args:
      mesh: from `make_mesh`.
      batch_size: samples of the global batch.
      spatial: the patch, depth first.
      accumulate: micro-batches per step.
      check_size: of the network; raises ValueError for a `spatial` that it does not take, which is
        then not named either.
    """
    data, depth = mesh.shape["data"], mesh.shape["depth"]
    if accumulate < 1 or batch_size < 1 or batch_size % (data * accumulate):
        unit = data * max(accumulate, 1)
        raise ConfigError(
            f"batch_size={batch_size} does not divide over data={data} devices x "
            f"accumulate={accumulate} micro-batches; fits: {_nearest(batch_size, unit)}"
        )
    if spatial[0] % depth:
        raise ConfigError(
            f"patch depth {spatial[0]} does not divide over depth={depth} devices; "
            f"fits: {_nearest_depths(spatial, depth, check_size)}"
        )


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global device arrays from this process's part of a batch.

    Args:
      batch: numpy arrays `(b / processes, depth, ...)`, the image first, or `(b / processes, k)`:
        the samples at `batch_positions`, in their order.
      mesh: from `make_mesh`.

    Raises ConfigError, naming the sizes that fit, if batch or depth do not divide.
    """
    first = next(iter(batch.values()))
    check_batch(mesh, first.shape[0] * jax.process_count(), first.shape[1:])
    return {
        name: jax.make_array_from_process_local_data(batched(mesh, array.ndim), np.asarray(array))
        for name, array in batch.items()
    }


def abstract_like(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(size: int, unit: int) -> str:
    below = size // unit * unit
    return " or ".join(str(s) for s in (below, below + unit) if s > 0)


def _nearest_depths(
    spatial: Sequence[int], unit: int, check_size: Callable[[Sequence[int]], None]
) -> str:
    """The nearest depth below and above that is a multiple of the unit and suits the network."""

    def suits(depth: int) -> bool:
        try:
            check_size((depth, *spatial[1:]))
        except ValueError:
            return False
        return True

    below = range(spatial[0] // unit * unit, 0, -unit)
    above = range(spatial[0] // unit * unit + unit, FARTHEST * (spatial[0] + unit), unit)
    found = (next(filter(suits, depths), None) for depths in (below, above))
    said = " or ".join(str(depth) for depth in found if depth is not None)
    return said or "none near it; change mesh.depth"
