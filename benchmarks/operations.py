"""Both sides of each operation, forward and backward, at the sizes that it has in DX-Net."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import flops, inputs, ours, peer, theirs
from benchmarks.timing import Case, Contestant
from crossdim_jax import ops

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass
class Operation:
    """An operation on named arrays: the first ones are tensors, the rest parameters.

    Attributes:
      name, detail: for tables.
      arrays: name -> float32 array, tensors channels last, parameters in Flax layout.
      tensors: how many of them are tensors; torch gets those in the layout of its variant.
      ours: ops mode -> function of the arrays.
      theirs: variant name -> function of torch tensors in torch's layout.
      kernels: name -> the axes that bring a kernel into torch's layout.
    """

    name: str
    detail: str
    arrays: dict[str, np.ndarray]
    tensors: int
    ours: Callable[[str], Callable]
    theirs: dict[str, Callable]
    kernels: dict[str, tuple[int, ...]]


DENSE, UP = (4, 3, 0, 1, 2), (3, 4, 0, 1, 2)


def _random(seed: int, **shapes: Sequence[int]) -> dict[str, np.ndarray]:
    """Tensors of unit variance, kernels (rank 5, cubic window first) that keep it."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in shapes.items():
        value = rng.normal(size=shape).astype(np.float32)
        if "kernel" in name:
            value /= np.float32(np.sqrt(np.prod(shape[:-1])))
        found[name] = value
    return found


def convolution(layer: flops.Layer) -> Operation:
    """A dense or depthwise convolution with SAME padding, without bias."""
    window, strides = (layer.window,) * 3, (layer.stride,) * 3
    padding = ops.explicit_padding(layer.spatial, window, strides, "same")
    apply = ops.depthwise_conv if layer.kind == "depthwise" else ops.conv
    groups = layer.c_in if layer.kind == "depthwise" else 1

    def mine(mode):
        return lambda x, k: apply(x, k, strides=strides, padding=padding, mode=mode)

    def other(x, kernel):
        if all(low == high for low, high in padding):
            return F.conv3d(x, kernel, None, strides, [p[0] for p in padding], 1, groups)
        x = F.pad(x, [p for pair in reversed(padding) for p in pair])
        return F.conv3d(x, kernel, None, strides, 0, 1, groups)

    sizes = "x".join(map(str, layer.spatial))
    channels = f"{layer.c_in}" if groups > 1 else f"{layer.c_in}->{layer.c_out}"
    return Operation(
        f"{layer.kind} k{layer.window} s{layer.stride} {channels} at {sizes}",
        layer.path,
        _random(0, x=(1, *layer.spatial, layer.c_in), kernel=layer.kernel_shape),
        1,
        mine,
        {"": other},
        {"kernel": DENSE},
    )


def transposed(layer: flops.Layer) -> Operation:
    """A transposed convolution with window and stride 2, with bias."""
    sizes = "x".join(map(str, layer.spatial))
    return Operation(
        f"up k2 s2 {layer.c_in}->{layer.c_out} at {sizes}",
        layer.path,
        _random(
            0,
            x=(1, *layer.spatial, layer.c_in),
            kernel=layer.kernel_shape,
            bias=(layer.c_out,),
        ),
        1,
        lambda mode: lambda x, k, b: ops.add_bias(ops.upsample_conv(x, k), b),
        {"": lambda x, k, b: F.conv_transpose3d(x, k, b, 2)},
        {"kernel": UP},
    )


def up_concat_conv(up: flops.Layer, conv: flops.Layer) -> Operation:
    """Transposed convolution, concatenated skip, 3^3 convolution without bias."""
    skip = conv.c_in - up.c_out
    folded = getattr(ops, "up_concat_conv", None)
    padding = ops.explicit_padding(conv.spatial, (3, 3, 3), (1, 1, 1), "same")

    def unfolded(mode):
        def apply(x, skip, up_kernel, up_bias, conv_kernel):
            y = ops.add_bias(ops.upsample_conv(x, up_kernel), up_bias)
            y = jnp.concatenate([y, skip], -1)
            return ops.conv(y, conv_kernel, strides=(1, 1, 1), padding=padding, mode=mode)

        return apply

    def mine(mode):
        # The reference beside is what the networks would do without the folded operation.
        if folded is None or mode == "lax":
            return unfolded(mode)
        return lambda *arrays: folded(*arrays, mode=mode)

    def other(x, skip, up_kernel, up_bias, conv_kernel):
        y = torch.cat([F.conv_transpose3d(x, up_kernel, up_bias, 2), skip], 1)
        return F.conv3d(y, conv_kernel, None, 1, 1)

    sizes = "x".join(map(str, up.spatial))
    return Operation(
        f"up+concat+conv {up.c_in}+{skip}->{conv.c_out} at {sizes}",
        f"{up.path}, {conv.path}; ours {'not folded' if folded is None else 'ops.up_concat_conv'}",
        _random(
            0,
            x=(1, *up.spatial, up.c_in),
            skip=(1, *conv.spatial, skip),
            up_kernel=up.kernel_shape,
            up_bias=(up.c_out,),
            conv_kernel=conv.kernel_shape,
        ),
        2,
        mine,
        {"": other},
        {"up_kernel": UP, "conv_kernel": DENSE},
    )


def norm_silu(spatial: Sequence[int], channels: int, eps: float) -> Operation:
    """Instance normalisation, then SiLU."""
    sizes = "x".join(map(str, spatial))

    def other(norm):
        return lambda x, scale, bias: F.silu(norm(x, scale, bias, eps))

    compiled = torch.compile(other(peer.instance_norm), dynamic=False)
    return Operation(
        f"instance norm + SiLU {channels} at {sizes}",
        "",
        _random(0, x=(1, *spatial, channels), scale=(channels,), bias=(channels,)),
        1,
        lambda mode: lambda x, s, b: ops.instance_norm(x, s, b, eps=eps, activation="silu"),
        {
            "instance_norm": other(peer.instance_norm),
            "group_norm": other(peer.group_norm),
            "compiled": compiled,
        },
        {},
    )


def operations(size: int) -> Iterator[Operation]:
    """All of them, each shape once, for DX-Net on a cube of `size` voxels."""
    model = ours.model("auto")
    layers = flops.layers(model, (1, size, size, size, inputs.MODALITIES))
    seen = set()
    for kind in ("depthwise", "dense"):
        for layer in layers:
            shape = (layer.window, layer.stride, layer.c_in, layer.c_out, layer.spatial)
            if layer.kind == kind and layer.window > 1 and shape not in seen:
                seen.add(shape)
                yield convolution(layer)
    named = {layer.path: layer for layer in layers}
    levels = range(len(model.widths))
    for level in levels:
        yield transposed(named[f"decoder/up_{level}"])
    for level in levels:
        up, conv = named[f"decoder/up_{level}"], named[f"decoder/conv_{level}_0/conv"]
        yield up_concat_conv(up, conv)
    for reduction, channels, eps in ((1, 16, 1e-5), (2, 96, 1e-3), (4, 144, 1e-3), (16, 480, 1e-3)):
        yield norm_silu((size // reduction,) * 3, channels, eps)


def _cotangent(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def ours_of(operation: Operation, mode: str, dtype: str) -> Contestant:
    """Our side of an operation: forward and backward, compiled."""
    function = operation.ours(mode)
    arrays = [
        jnp.asarray(a, dtype if i < operation.tensors or "kernel" in name else jnp.float32)
        for i, (name, a) in enumerate(operation.arrays.items())
    ]

    if dtype != "float32":  # biases follow the tensors, as in the layers; norms keep float32
        arrays = [
            a.astype(dtype) if "bias" in name and operation.kernels else a
            for name, a in zip(operation.arrays, arrays, strict=True)
        ]
    like = jax.eval_shape(function, *arrays)
    g = jnp.asarray(_cotangent(like.shape), like.dtype)

    def both(g, *arrays):
        y, pull = jax.vjp(function, *arrays)
        return y, pull(g)

    executable, notes = ours.compiled(both, g, *arrays, dtype=dtype)

    def step():
        return executable(g, *arrays)

    def values():
        y, gradients = step()
        found = {"output": y} | {
            f"d{name}": d for name, d in zip(operation.arrays, gradients, strict=True)
        }
        return {name: np.asarray(value.astype(jnp.float32)) for name, value in found.items()}

    return Contestant(mode, step, jax.block_until_ready, values, notes)


def _to_torch(operation: Operation, index: int, name: str, layout: str, dtype: str) -> Any:
    array, wide = operation.arrays[name], "float32"
    if index < operation.tensors:
        array = np.moveaxis(array, -1, 1)
    elif name in operation.kernels:
        array = array.transpose(operation.kernels[name])
    if index < operation.tensors or operation.kernels:
        wide = dtype
    tensor = torch.from_numpy(array.copy()).to(theirs.device(), TORCH_DTYPES[wide])
    if tensor.ndim == 5:
        tensor = tensor.contiguous(memory_format=theirs.FORMATS[layout])
    return tensor.requires_grad_()


def _theirs(
    operation: Operation, function: Callable, name: str, layout: str, dtype: str, graph: bool
) -> Contestant:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    tensors = {n: _to_torch(operation, i, n, layout, dtype) for i, n in enumerate(operation.arrays)}
    with torch.no_grad():
        like = function(*tensors.values())
    g = torch.from_numpy(np.moveaxis(_cotangent(_channels_last(like)), -1, 1).copy())
    g = g.to(like.device, like.dtype).contiguous(memory_format=theirs.FORMATS[layout])

    def plain():
        y = function(*tensors.values())
        return y, torch.autograd.grad(y, list(tensors.values()), g)

    step = theirs.recorded(plain) if graph else plain

    def values():
        y, gradients = step()
        theirs.wait()
        found = {"output": theirs.to_numpy(y)}
        for i, (n, d) in enumerate(zip(tensors, gradients, strict=True)):
            if i >= operation.tensors and n in operation.kernels:
                back = np.argsort(operation.kernels[n])
                found[f"d{n}"] = d.detach().float().cpu().numpy().transpose(back)
            else:
                found[f"d{n}"] = theirs.to_numpy(d)
        return found

    return Contestant(name, step, theirs.wait, values)


def _channels_last(x: Any) -> tuple[int, ...]:
    batch, channels, *spatial = x.shape
    return (batch, *spatial, channels)


def case(operation: Operation, dtype: str) -> Case:
    """The operation as something to measure: in both of torch's layouts, on a GPU also recorded."""

    def maker(function, name, layout, graph):
        return lambda: _theirs(operation, function, name, layout, dtype, graph)

    variants, compiling = {}, set()
    for graph in (False, True) if theirs.device().type == "cuda" else (False,):
        for layout in theirs.FORMATS:
            for how, function in operation.theirs.items():
                name = ", ".join(filter(None, [layout, how, "CUDA graph" if graph else ""]))
                variants[name] = maker(function, name, layout, graph)
                if how == "compiled":
                    compiling.add(name)
    return Case(
        "operation",
        operation.name,
        dtype,
        lambda mode: ours_of(operation, mode, dtype),
        variants,
        operation.detail,
        compiling=compiling,
    )
