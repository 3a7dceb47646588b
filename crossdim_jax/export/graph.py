"""Tensors of an ONNX graph that is being written, and the layout in which each lies there."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from crossdim_jax.errors import CrossdimError

OPSET = 13  # the first in which reductions take their axes as an input; nothing here needs more
IR_VERSION = 7  # of that opset
BATCH = 7919  # what a batch of any size is traced as: a prime that no other size is a multiple of


class NotExpressible(CrossdimError):
    """Something of a network that has no form in ONNX."""


def natural(rank: int) -> tuple[int, ...]:
    """Order in which ONNX wants axes (b, *spatial, c): channels before the spatial ones."""
    return (0, rank - 1, *range(1, rank - 1)) if rank > 2 else tuple(range(rank))


def is_batch(size: int) -> bool:
    """True for a size that is the batch's, or a multiple of it."""
    return size > 0 and size % BATCH == 0


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An array of the traced network, and what of it is in the graph.

    Attributes:
      shape: as the network has it.
      sizes: the same, but 1 along axes on which all entries are equal and were not repeated.
      order: the network's axis at each place of what is stored.
      name: in the graph; "" for a constant.
      value: of a constant, with the network's axes and `sizes`.
    """

    shape: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...]
    name: str = ""
    value: np.ndarray | None = None

    @property
    def stored(self) -> tuple[int, ...]:
        """Sizes in the order of storage."""
        return tuple(self.sizes[axis] for axis in self.order)

    def whole(self) -> np.ndarray:
        """A constant with all of its entries."""
        if any(is_batch(n) for n, m in zip(self.shape, self.sizes, strict=True) if n != m):
            raise NotExpressible("a constant that is repeated for each sample")
        return np.broadcast_to(self.value, self.shape)


def constant(value: np.ndarray, shape: Sequence[int] | None = None) -> Tensor:
    """Tensor of a constant; `shape` where that is larger along axes of size 1."""
    value = np.asarray(value)
    rank = tuple(range(value.ndim))
    return Tensor(value.shape if shape is None else tuple(shape), value.shape, rank, value=value)


class Graph:
    """Nodes and constants of a graph.

    Attributes:
      scope: name of the module whose operations are being written, for the nodes' names.
    """

    def __init__(self):
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._known: dict[tuple, str] = {}  # constants by content

    def emit(self, op: str, *inputs: str, **attributes: object) -> str:
        """Adds a node of one output; returns its name."""
        name = f"{self.scope}/{op}_{len(self._nodes)}".lstrip("/")
        self._nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: np.ndarray) -> str:
        """Name of a constant; equal ones are stored once."""
        value = np.ascontiguousarray(value)
        key = (value.tobytes(), value.shape, value.dtype.str)
        if key not in self._known:
            name = f"{self.scope}/constant_{len(self._constants)}".lstrip("/")
            self._known[key] = name
            self._constants[name] = value
        return self._known[key]

    def ints(self, *values: int) -> str:
        """Name of a constant vector of integers, such as axes."""
        return self.constant(np.array(values, np.int64))

    def tensor(self, name: str, shape: Sequence[int], order: Sequence[int], sizes=None) -> Tensor:
        """Tensor of a node's output."""
        shape = tuple(shape)
        return Tensor(shape, shape if sizes is None else tuple(sizes), tuple(order), name)

    def in_order(self, x: Tensor, order: Sequence[int]) -> str:
        """Name of x with its axes stored in that order."""
        order = tuple(order)
        if x.value is not None:
            return self.constant(x.value.transpose(order))
        if order == x.order:
            return x.name
        if [a for a in order if x.sizes[a] != 1] == [a for a in x.order if x.sizes[a] != 1]:
            return self.reshaped(x.name, [x.sizes[axis] for axis in order])
        return self.emit("Transpose", x.name, perm=[x.order.index(axis) for axis in order])

    def reshaped(self, name: str, sizes: Sequence[int]) -> str:
        """Name of an array in another shape, in which the batch takes what the others leave."""
        return self.emit("Reshape", name, self.ints(*(-1 if is_batch(n) else n for n in sizes)))

    def expanded(self, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
        """x with its entries repeated along those axes, or all, where they are equal."""
        axes = range(len(x.shape)) if axes is None else axes
        more = [a for a in axes if x.sizes[a] != x.shape[a]]
        if not more:
            return x
        if x.value is not None:
            return constant(x.whole())
        if any(is_batch(x.shape[a]) for a in more):
            raise NotExpressible("an array that is repeated for each sample")
        sizes = tuple(x.shape[a] if a in more else n for a, n in enumerate(x.sizes))
        repeats = [x.shape[a] if a in more else 1 for a in x.order]
        name = self.emit("Expand", x.name, self.ints(*repeats))
        return dataclasses.replace(x, name=name, sizes=sizes)

    def output(self, name: str, source: str) -> None:
        """Gives an array a name of its own."""
        self._nodes.append(helper.make_node("Identity", [source], [name], name=name))

    def model(self, image: Tensor, output: str, sizes: Sequence[int]) -> onnx.ModelProto:
        """The graph as an ONNX model of what the output needs, from `image` to `output`."""
        needed, nodes = {output}, []
        for node in reversed(self._nodes):
            if node.output[0] in needed:
                needed |= set(node.input)
                nodes.append(node)
        graph = helper.make_graph(
            nodes[::-1],
            "network",
            [_value(image.name, image.stored)],
            [_value(output, sizes)],
            [
                numpy_helper.from_array(value, key)
                for key, value in self._constants.items()
                if key in needed
            ],
        )
        opset = [helper.make_opsetid("", OPSET)]
        made_by = {"producer_name": "crossdim_jax", "ir_version": IR_VERSION}
        return helper.make_model(graph, opset_imports=opset, **made_by)


def _value(name: str, sizes: Sequence[int]) -> onnx.ValueInfoProto:
    sizes = ["batch" if n == BATCH else n for n in sizes]
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, sizes)


def product(sizes: Sequence[int]) -> int:
    """Product as a Python integer, which a batch makes large."""
    return math.prod(int(n) for n in sizes)
