"""The convolutions of DX-Net from its tables, and the floating-point operations networks need."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from crossdim_jax.models import efficientnet_table


@dataclasses.dataclass(frozen=True)
class Layer:
    """One convolution.

    Attributes:
      path: of its Flax module, `encoder/blocks_1_0/conv_dw`.
      kind: "dense", "depthwise" or "up" (transposed, window and stride 2).
      window, stride: along every axis.
      c_in, c_out: channels.
      spatial: sizes of its input.
    """

    path: str
    kind: str
    window: int
    stride: int
    c_in: int
    c_out: int
    spatial: tuple[int, ...]

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """Shape in which Flax keeps the kernel: `(*window, in / groups, out)`."""
        groups_in = 1 if self.kind == "depthwise" else self.c_in
        return (*(self.window,) * len(self.spatial), groups_in, self.c_out)

    def flops(self) -> int:
        """Two per multiply-add, taps in the padding included, for one sample."""
        if self.kind == "up":  # every input voxel makes one window of outputs
            places = math.prod(self.spatial)
        else:
            places = math.prod(-(-n // self.stride) for n in self.spatial)
        return 2 * places * math.prod(self.kernel_shape)


def _encoder(encoder: str, c_in: int, spatial: tuple[int, ...]) -> Iterator[Layer]:
    net = efficientnet_table.network(efficientnet_table.VARIANTS[encoder])
    yield Layer("encoder/conv_stem", "dense", 3, 2, c_in, net.stem, spatial)
    spatial, c, one = tuple(-(-n // 2) for n in spatial), net.stem, (1,) * len(spatial)
    for s, blocks in enumerate(net.stages):
        for i, block in enumerate(blocks):
            if (
                block.kind not in ("separable", "inverted")
                or block.group != 1
                or block.experts
                or block.fold
                or block.blur
            ):
                raise ValueError(f"{encoder}: its blocks are of a kind that is not counted here")
            name, wide, window = f"encoder/blocks_{s}_{i}", block.expanded, block.window
            if block.kind == "inverted":
                yield Layer(f"{name}/conv_pw", "dense", 1, 1, c, wide, spatial)
            yield Layer(f"{name}/conv_dw", "depthwise", window, block.stride, wide, wide, spatial)
            spatial = tuple(-(-n // block.stride) for n in spatial)
            if block.reduced:
                yield Layer(f"{name}/se/conv_reduce", "dense", 1, 1, wide, block.reduced, one)
                yield Layer(f"{name}/se/conv_expand", "dense", 1, 1, block.reduced, wide, one)
            last = "conv_pw" if block.kind == "separable" else "conv_pwl"
            yield Layer(f"{name}/{last}", "dense", 1, 1, wide, block.channels, spatial)
            c = block.channels


def layers(model: Any, shape: Sequence[int]) -> list[Layer]:
    """Every convolution of a DX-Net, in the order of its forward pass.

    Args:
      model: from `models.build("dxnet")`.
      shape: `(b, *spatial, channels)` of its input.

    Raises:
      ValueError: the encoder has convolutions of a kind that is not counted here.
    """
    _, *spatial, c_in = shape
    spatial = tuple(spatial)
    spec = model.encoder
    if spec.depth_kernels or spec.depth_strides or spec.factorised:
        raise ValueError("the encoder's depth options are not counted here; leave them out")
    found = [Layer("full/conv", "dense", 3, 1, c_in, model.stem_width, spatial)]
    found += _encoder(spec.name, model.stem_width, spatial)
    channels = [model.stem_width, *(f.channels for f in spec.feature_info())]
    c = channels.pop()
    sizes = [tuple(n // 2**i for n in spatial) for i in range(len(channels) + 1)]
    for level, (width, skip) in enumerate(zip(model.widths, reversed(channels), strict=True)):
        coarse, fine = sizes[-1 - level], sizes[-2 - level]
        found.append(Layer(f"decoder/up_{level}", "up", 2, 2, c, c, coarse))
        found.append(Layer(f"decoder/conv_{level}_0/conv", "dense", 3, 1, c + skip, width, fine))
        found.append(Layer(f"decoder/conv_{level}_1/conv", "dense", 3, 1, width, width, fine))
        c = width
    found.append(Layer("head", "dense", 3, 1, c, model.out_channels, spatial))
    return found


def analytic_flops(model: Any, shape: Sequence[int], *, train: bool = False) -> int:
    """Floating-point operations of the convolutions: the least a program can do without folding.

    Two per multiply-add, taps in the padding included; norms, activations, gates, biases and the
    optimiser are not counted. A training step is three times the forward pass (the output, the
    input's gradient, the kernel's gradient), less the gradient of the image.

    Args:
      model: from `models.build("dxnet")`.
      shape: `(b, *spatial, channels)` of its input.
      train: a training step instead of a forward pass.
    """
    counts = [layer.flops() for layer in layers(model, shape)]
    total = 3 * sum(counts) - counts[0] if train else sum(counts)
    return shape[0] * total


def of_program(model: Any, shape: Sequence[int], *, train: bool = False) -> int:
    """The same count for any network, from its traced program; in its plain form, `ops="lax"`.

    Of a training step three times the forward pass, less the gradient of the image.
    """
    image = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    counts = list(_products(jax.make_jaxpr(model.apply)(variables, image).eqns))
    return 3 * sum(counts) - counts[0] if train else sum(counts)


def _products(equations: Any) -> Iterator[int]:
    """Operations of each convolution and matrix product, two per multiply-add, in order."""
    for equation in equations:
        for inner in jax.tree.leaves(list(equation.params.values())):
            if hasattr(inner, "eqns"):
                yield from _products(inner.eqns)
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            kernel, out = equation.invars[1].aval, equation.outvars[0].aval
            # Kernels end in (in / groups, out); matrices are (in, out).
            yield 2 * out.size * (kernel.size // kernel.shape[-1])
