"""Operations that move entries and calculate nothing: most of them are only a note on the layout.

Each takes the graph, the traced equation and its inputs, and gives its output.
"""

from collections.abc import Sequence

import numpy as np

from crossdim_jax.export.graph import Graph, NotExpressible, Tensor, constant, natural, product


def _shape(eqn) -> tuple[int, ...]:
    return tuple(eqn.outvars[0].aval.shape)


def _with_new_axes(existing: Sequence[int], rank: int) -> tuple[int, ...]:
    """An order of `rank` axes that keeps that of some: the natural one if it does."""
    wanted = natural(rank)
    if [a for a in wanted if a in existing] == list(existing):
        return wanted
    return (*existing, *(a for a in wanted if a not in existing))


def transpose(graph: Graph, eqn, x: Tensor) -> Tensor:
    """Axes in another order: nothing is moved until an operation wants it."""
    del graph
    axes = eqn.params["permutation"]
    shape, sizes = (tuple(n[a] for a in axes) for n in (x.shape, x.sizes))
    if x.value is not None:
        return constant(x.value.transpose(axes), shape)
    return Tensor(shape, sizes, tuple(axes.index(a) for a in x.order), x.name)


def broadcast(graph: Graph, eqn, x: Tensor) -> Tensor:
    """New axes, and axes of size 1 made larger: nothing is repeated until it must be."""
    shape, places = _shape(eqn), eqn.params["broadcast_dimensions"]
    new = [a for a in range(len(shape)) if a not in places]
    if x.value is not None:
        return constant(np.expand_dims(x.value, new), shape)
    sizes = [1] * len(shape)
    for axis, place in enumerate(places):
        sizes[place] = x.sizes[axis]
    order, name = tuple(places[a] for a in x.order), x.name
    if new:
        order = _with_new_axes(order, len(shape))
        name = graph.emit("Unsqueeze", name, graph.ints(*sorted(order.index(a) for a in new)))
    return graph.tensor(name, shape, order, sizes)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Axes of an old and a new shape in runs of equal products, without axes of size 1."""
    left = [a for a, n in enumerate(old) if n != 1]
    right = [a for a, n in enumerate(new) if n != 1]
    groups = []
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        while (here := product(old[i] for i in a)) != (there := product(new[i] for i in b)):
            a.append(left.pop(0)) if here < there else b.append(right.pop(0))
        groups.append((a, b))
    return groups


def reshape(graph: Graph, eqn, x: Tensor) -> Tensor:
    """Axes split, merged, added or taken away, in the stored order where that allows it."""
    shape = _shape(eqn)
    if x.value is not None:
        same = product(x.sizes) == 1
        return constant(x.value.reshape((1,) * len(shape)) if same else x.whole().reshape(shape))
    groups, sizes = _groups(x.shape, shape), [1] * len(shape)
    for olds, news in groups:
        if len(olds) == len(news) == 1:
            sizes[news[0]] = x.sizes[olds[0]]
        else:
            x = graph.expanded(x, olds)
            for axis in news:
                sizes[axis] = shape[axis]
    stored = [a for a in x.order if x.shape[a] != 1]
    if any(stored[(i := stored.index(olds[0])) : i + len(olds)] != olds for olds, _ in groups):
        groups.sort(key=lambda group: natural(len(shape)).index(group[1][0]))
    else:
        groups.sort(key=lambda group: stored.index(group[0][0]))
    before = [a for olds, _ in groups for a in olds]
    name = graph.in_order(x, (*before, *(a for a in x.order if x.shape[a] == 1)))
    order = _with_new_axes([a for _, news in groups for a in news], len(shape))
    return graph.tensor(graph.reshaped(name, [sizes[a] for a in order]), shape, order, sizes)


def concatenate(graph: Graph, eqn, *parts: Tensor) -> Tensor:
    """Joined along an axis; empty parts are left out."""
    axis, shape = eqn.params["dimension"], _shape(eqn)
    parts = [graph.expanded(part) for part in parts if part.shape[axis]]
    if len(parts) == 1:
        return parts[0]
    order = largest(parts).order
    names = [graph.in_order(part, order) for part in parts]
    return graph.tensor(graph.emit("Concat", *names, axis=order.index(axis)), shape, order)


def largest(tensors: Sequence[Tensor]) -> Tensor:
    """The one with most entries that is no constant: the others are brought to its order."""
    return max((t for t in tensors if t.value is None), key=lambda t: product(t.sizes))


def _sliced(graph: Graph, x: Tensor, cuts: dict[int, tuple[int, int, int]], shape) -> Tensor:
    """x cut by (start, stop, step) along axes."""
    cuts = {axis: cut for axis, cut in cuts.items() if x.sizes[axis] != 1}
    sizes = [shape[a] if a in cuts else n for a, n in enumerate(x.sizes)]
    if not cuts:
        return graph.tensor(x.name, shape, x.order, sizes)
    starts, stops, steps = zip(*cuts.values(), strict=True)
    axes = [x.order.index(axis) for axis in cuts]
    numbers = [graph.ints(*values) for values in (starts, stops, axes, steps)]
    return graph.tensor(graph.emit("Slice", x.name, *numbers), shape, x.order, sizes)


def cut(graph: Graph, eqn, x: Tensor) -> Tensor:
    """A slice with steps."""
    p = eqn.params
    steps = p["strides"] or (1,) * len(x.shape)
    every = enumerate(zip(p["start_indices"], p["limit_indices"], steps, strict=True))
    return _sliced(graph, x, {a: c for a, c in every if c != (0, x.shape[a], 1)}, _shape(eqn))


def reverse(graph: Graph, eqn, x: Tensor) -> Tensor:
    """Axes from their end to their start."""
    last = np.iinfo(np.int64).min  # before the first
    return _sliced(graph, x, {a: (-1, last, -1) for a in eqn.params["dimensions"]}, x.shape)


def split(graph: Graph, eqn, x: Tensor) -> list[Tensor]:
    """Parts along an axis."""
    axis, start, parts = eqn.params["axis"], 0, []
    for out, size in zip(eqn.outvars, eqn.params["sizes"], strict=True):
        parts.append(_sliced(graph, x, {axis: (start, start + size, 1)}, out.aval.shape))
        start += size
    return parts


def pad(graph: Graph, eqn, x: Tensor, value: Tensor) -> Tensor:
    """Entries added at the ends, or taken away, and between neighbours."""
    if value.value is None:
        raise NotExpressible("padding with a value that is computed")
    config, fill = eqn.params["padding_config"], graph.constant(value.value)
    x = graph.expanded(x, [a for a, c in enumerate(config) if any(c)])
    order, sizes, name = x.order, list(x.sizes), graph.in_order(x, x.order)
    lows, highs = [c[0] for c in config], [c[1] for c in config]
    for axis, (_, _, between) in enumerate(config):
        if between:  # each entry with what follows it, then one axis again, and less at its end
            place = order.index(axis)
            stored = [sizes[a] for a in order]
            single = [*stored[: place + 1], 1, *stored[place + 1 :]]
            amounts = [0] * (2 * len(single))
            amounts[len(single) + place + 1] = between
            name = graph.emit("Pad", graph.reshaped(name, single), graph.ints(*amounts), fill)
            sizes[axis] *= between + 1
            name = graph.reshaped(name, [sizes[a] for a in order])
            highs[axis] -= between
    amounts = [n[a] for n in (lows, highs) for a in order]
    name = graph.emit("Pad", name, graph.ints(*amounts), fill)
    shape = _shape(eqn)
    sizes = [shape[a] if any(config[a]) else n for a, n in enumerate(sizes)]
    return graph.tensor(name, shape, order, sizes)


OPERATIONS = {
    "transpose": transpose,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "concatenate": concatenate,
    "slice": cut,
    "rev": reverse,
    "split": split,
    "pad": pad,
}
