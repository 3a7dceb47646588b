"""A Flax network with its weights as one ONNX model, told from the jaxpr that JAX traces.

Nothing here knows a network or an encoder: their operations are translated one by one, those of
constants alone are calculated. What has no translation is refused with its name.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core

from crossdim_jax.export import arithmetic, layout
from crossdim_jax.export.graph import BATCH, Graph, NotExpressible, Tensor, constant, natural

OPERATIONS = layout.OPERATIONS | arithmetic.OPERATIONS
SAME = ("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision")
BODIES = ("jaxpr", "call_jaxpr", "fun_jaxpr")  # parameters that hold what a call does


def as_onnx(model: Any, variables: Any, spatial: Sequence[int], channels: int) -> onnx.ModelProto:
    """The network as ONNX: `image (batch, channels, *spatial) -> logits (batch, k, *spatial)`.

    Everything is float32. The batch is of any size, but 1 for a network that mixes kernels anew for
    each sample (`efficientnet_cc_*`).

    Args:
      model: of `models.build`.
      variables: its parameters and running statistics, arrays.
      spatial: size of a patch.
      channels: of an image.

    Raises NotExpressible, naming the operation and the module it is in.
    """
    apply = functools.partial(reference(model).apply, train=False)
    try:
        return _translated(apply, variables, (BATCH, *spatial, channels))
    except arithmetic.PerSample:
        return _translated(apply, variables, (1, *spatial, channels))


def reference(model: Any) -> Any:
    """The network by plain operations in float32, which is the one that is exported."""
    return model.clone(dtype="float32", ops="lax")


def _translated(apply: Any, variables: Any, shape: tuple[int, ...]) -> onnx.ModelProto:
    def abstract(array):
        return jax.ShapeDtypeStruct(array.shape, array.dtype)

    image = jax.ShapeDtypeStruct(shape, np.float32)
    closed = jax.make_jaxpr(apply)(jax.tree.map(abstract, variables), image)
    order = natural(len(shape))
    graph, source = Graph(), Tensor(shape, shape, order, "image")
    leaves = [constant(np.asarray(leaf)) for leaf in jax.tree.leaves(variables)]
    (logits,) = _run(graph, closed.jaxpr, closed.consts, [*leaves, source])
    graph.scope = ""
    graph.output("logits", graph.in_order(graph.expanded(logits), order))
    return graph.model(source, "logits", [logits.shape[axis] for axis in order])


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a jaxpr, whose operations are added to the graph."""
    known = dict(zip(jaxpr.constvars, map(constant, consts), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(var):
        if isinstance(var, core.Literal):
            return constant(np.asarray(var.val, var.aval.dtype))
        return known[var]

    for eqn in jaxpr.eqns:
        found = _operation(graph, eqn, [read(var) for var in eqn.invars])
        known |= dict(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _operation(graph: Graph, eqn: Any, inputs: list[Tensor]) -> list[Tensor]:
    name = eqn.primitive.name
    modules = [part for part in str(eqn.source_info.name_stack).split("/") if part.isidentifier()]
    graph.scope = "/".join(modules) or graph.scope
    if (body := next((eqn.params[p] for p in BODIES if p in eqn.params), None)) is not None:
        if name in ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint") or (
            name.startswith("custom_")
        ):
            inner = getattr(body, "jaxpr", body)
            return _run(graph, inner, getattr(body, "consts", ()), inputs)
    if name in SAME or (name == "convert_element_type" and _keeps_type(eqn)):
        return inputs
    if all(0 in var.aval.shape for var in eqn.outvars):  # nothing: whoever joins it leaves it out
        return [constant(np.zeros((1,) * v.aval.ndim), v.aval.shape) for v in eqn.outvars]
    movement = name in ("transpose", "broadcast_in_dim", "reshape", "squeeze", "expand_dims")
    if not movement and all(x.value is not None for x in inputs):
        return _calculated(eqn, inputs)
    try:
        if name not in OPERATIONS:
            raise NotExpressible(f"the operation {name!r}")
        found = OPERATIONS[name](graph, eqn, *inputs)
    except NotExpressible as error:
        raise type(error)(
            f"{error} in {graph.scope or 'the network'} cannot be written as ONNX"
        ) from error
    return found if isinstance(found, list) else [found]


def _keeps_type(eqn: Any) -> bool:
    return eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype


def _calculated(eqn: Any, inputs: Sequence[Tensor]) -> list[Tensor]:
    """An operation of constants alone; entry by entry, axes of equal entries are kept at 1."""
    if eqn.primitive.name in arithmetic.ENTRYWISE:
        values = np.broadcast_arrays(*(x.value for x in inputs))
    else:
        values = [x.whole() for x in inputs]
    found = eqn.primitive.bind(*values, **eqn.params)
    found = found if eqn.primitive.multiple_results else [found]
    return [
        constant(np.asarray(value), var.aval.shape)
        for value, var in zip(found, eqn.outvars, strict=True)
    ]
