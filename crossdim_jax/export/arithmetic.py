"""Operations that calculate: convolutions, products, reductions, windows, and entry by entry."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import helper

from crossdim_jax.export.graph import (
    Graph,
    NotExpressible,
    Tensor,
    is_batch,
    product,
)
from crossdim_jax.export.layout import largest


class PerSample(NotExpressible):
    """An operation that a batch of any size cannot have: each sample has a kernel of its own."""


def _shape(eqn) -> tuple[int, ...]:
    return tuple(eqn.outvars[0].aval.shape)


# --------------------------------------------------------------------------- linear


def convolution(graph: Graph, eqn, x: Tensor, kernel: Tensor) -> Tensor:
    """Convolution with strides, paddings, dilations and groups, in the layout of ONNX."""
    p, numbers = eqn.params, eqn.params["dimension_numbers"]
    if is_batch(p["feature_group_count"]) or is_batch(p["batch_group_count"]):
        raise PerSample("a convolution in which each sample has a kernel of its own")
    if p["batch_group_count"] != 1 or set(p["lhs_dilation"]) - {1}:
        raise NotExpressible("a convolution of a dilated input or of groups of samples")
    if min(min(pair) for pair in p["padding"]) < 0:
        raise NotExpressible("a convolution with negative padding")
    name = graph.emit(
        "Conv",
        graph.in_order(graph.expanded(x), numbers.lhs_spec),
        graph.in_order(graph.expanded(kernel), numbers.rhs_spec),
        strides=list(p["window_strides"]),
        pads=[pair[end] for end in (0, 1) for pair in p["padding"]],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return graph.tensor(name, _shape(eqn), numbers.out_spec)


def dot(graph: Graph, eqn, x: Tensor, y: Tensor) -> Tensor:
    """Matrix product; of voxels' channels with a constant matrix as a convolution of 1."""
    (of_x, of_y), (batch_x, batch_y) = eqn.params["dimension_numbers"]
    x, y, shape = graph.expanded(x), graph.expanded(y), _shape(eqn)
    rank = len(x.shape)
    matrix = y.value is not None and len(y.shape) == 2 and len(of_x) == 1 and not batch_x
    if matrix and 3 <= rank <= 5 and of_x[0] == rank - 1:
        weights = y.value.transpose(1 - of_y[0], of_y[0]).reshape(shape[-1], -1, *(1,) * (rank - 2))
        order = (0, rank - 1, *range(1, rank - 1))
        name = graph.emit("Conv", graph.in_order(x, order), graph.constant(weights))
        return graph.tensor(name, shape, order)
    free_x = [a for a in range(rank) if a not in (*of_x, *batch_x)]
    free_y = [a for a in range(len(y.shape)) if a not in (*of_y, *batch_y)]
    left = _as_matrices(graph, x, batch_x, free_x, of_x)
    right = _as_matrices(graph, y, batch_y, of_y, free_y)
    name = graph.reshaped(graph.emit("MatMul", left, right), shape)
    return graph.tensor(name, shape, range(len(shape)))


def _as_matrices(graph: Graph, x: Tensor, *groups) -> str:
    """x with each group of axes as one."""
    name = graph.in_order(x, [axis for group in groups for axis in group])
    return graph.reshaped(name, [product(x.shape[a] for a in group) for group in groups])


# --------------------------------------------------------------------------- over axes or windows


def reduction(op: str, *, repeats_count: bool) -> Callable:
    """Reduction over axes. repeats_count: whether equal entries must be there as often as meant."""

    def reduce(graph: Graph, eqn, x: Tensor) -> Tensor:
        axes = eqn.params["axes"]
        x = graph.expanded(x, axes) if repeats_count else x
        places = sorted(x.order.index(axis) for axis in axes)
        if op == "ReduceSum":  # the others take their axes as an attribute in this opset
            # Axis by axis: ONNX Runtime adds up in float32, one entry after the other, and loses
            # one or two digits over a volume.
            name = x.name
            for place in reversed(places):
                name = graph.emit(op, name, graph.ints(place), keepdims=0)
        else:
            name = graph.emit(op, x.name, axes=places, keepdims=0)
        kept = [a for a in range(len(x.shape)) if a not in axes]
        order = [kept.index(a) for a in x.order if a in kept]
        return graph.tensor(name, _shape(eqn), order, [x.sizes[a] for a in kept])

    return reduce


def windowed(op: str) -> Callable:
    """Maximum or sum over the windows of (b, *spatial, c)."""

    def reduce(graph: Graph, eqn, x: Tensor) -> Tensor:
        p, rank = eqn.params, len(x.shape)
        window, order = p["window_dimensions"], (0, rank - 1, *range(1, rank - 1))
        ends = window[0], window[-1], *p["padding"][0], *p["padding"][-1]
        if rank < 3 or ends != (1, 1, 0, 0, 0, 0) or set(p["base_dilation"]) - {1}:
            raise NotExpressible("a window over samples or channels, or of a dilated input")
        if set(p["window_dilation"]) - {1}:
            raise NotExpressible("a window with gaps")
        spatial = slice(1, rank - 1)
        attributes = {
            "kernel_shape": list(window[spatial]),
            "strides": list(p["window_strides"][spatial]),
            "pads": [pair[end] for end in (0, 1) for pair in p["padding"][spatial]],
        }
        if op == "AveragePool":
            attributes["count_include_pad"] = 1
        name = graph.emit(op, graph.in_order(graph.expanded(x), order), **attributes)
        if op == "AveragePool":
            name = graph.emit("Mul", name, graph.constant(np.float32(product(window))))
        return graph.tensor(name, _shape(eqn), order)

    return reduce


# --------------------------------------------------------------------------- entry by entry


def entrywise(graph: Graph, eqn, *inputs: Tensor) -> Tensor:
    """One of `ENTRYWISE`; what is the same along an axis is not repeated for it."""
    shape = _shape(eqn)
    order = largest([x for x in inputs if len(x.shape) == len(shape)]).order
    names = [graph.in_order(x, order if len(x.shape) == len(shape) else ()) for x in inputs]
    name = ENTRYWISE[eqn.primitive.name](graph, eqn.params, *names)
    full = [x.sizes for x in inputs if len(x.shape) == len(shape)]
    return graph.tensor(name, shape, order, [max(n) for n in zip(*full, strict=True)])


def _op(name: str) -> Callable[..., str]:
    return lambda graph, params, *inputs: graph.emit(name, *inputs)


def _then(*names: str) -> Callable[..., str]:
    def chain(graph, params, x):
        for name in names:
            x = graph.emit(name, x)
        return x

    return chain


def _power(graph, params, x):
    if params["y"] == 2:
        return graph.emit("Mul", x, x)
    return graph.emit("Pow", x, graph.constant(np.float32(params["y"])))


def _complement(graph, params, x):
    return graph.emit("Sub", graph.constant(np.float32(1)), graph.emit("Erf", x))


def _plus(graph, x, number):
    return graph.emit("Add", x, graph.constant(np.float32(number)))


def _cast(graph, params, x):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(params["new_dtype"]))
    if kind == onnx.TensorProto.BFLOAT16:
        raise NotExpressible("an array in bfloat16")
    return graph.emit("Cast", x, to=kind)


ENTRYWISE: dict[str, Callable[..., str]] = {
    **{
        ours: _op(theirs)
        for ours, theirs in {
            **{"add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div"},
            **{"max": "Max", "min": "Min", "pow": "Pow", "neg": "Neg", "abs": "Abs"},
            **{"sign": "Sign", "floor": "Floor", "ceil": "Ceil", "exp": "Exp", "log": "Log"},
            **{"sqrt": "Sqrt", "tanh": "Tanh", "erf": "Erf", "logistic": "Sigmoid"},
            **{"gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual"},
            **{"eq": "Equal", "not": "Not", "and": "And", "or": "Or"},
        }.items()
    },
    "rsqrt": _then("Sqrt", "Reciprocal"),
    "square": lambda graph, params, x: graph.emit("Mul", x, x),
    "integer_pow": _power,
    "erfc": _complement,
    "log1p": lambda graph, params, x: graph.emit("Log", _plus(graph, x, 1)),
    "expm1": lambda graph, params, x: _plus(graph, graph.emit("Exp", x), -1),
    "ne": lambda graph, params, x, y: graph.emit("Not", graph.emit("Equal", x, y)),
    "convert_element_type": _cast,
    "clamp": lambda graph, params, low, x, high: graph.emit("Min", graph.emit("Max", x, low), high),
    "select_n": lambda graph, params, which, first, second: graph.emit(
        "Where", which, second, first
    ),
}

OPERATIONS = {
    "conv_general_dilated": convolution,
    "dot_general": dot,
    "reduce_sum": reduction("ReduceSum", repeats_count=True),
    "reduce_max": reduction("ReduceMax", repeats_count=False),
    "reduce_min": reduction("ReduceMin", repeats_count=False),
    "reduce_window_max": windowed("MaxPool"),
    "reduce_window_sum": windowed("AveragePool"),
    **dict.fromkeys(ENTRYWISE, entrywise),
}
