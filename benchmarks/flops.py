"""The convolutions of DX-Net from its tables, and the floating-point operations they need."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from crossdim_jax.models import efficientnet


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
        """As Flax keeps the kernel: `(*window, in / groups, out)`."""
        groups_in = 1 if self.kind == "depthwise" else self.c_in
        return (*(self.window,) * len(self.spatial), groups_in, self.c_out)

    def flops(self) -> int:
        """Two per multiply-add, taps in the padding included, for one sample."""
        if self.kind == "up":  # every input voxel makes one window of outputs
            places = math.prod(self.spatial)
        else:
            places = math.prod(-(-n // self.stride) for n in self.spatial)
        return 2 * places * math.prod(self.kernel_shape)


def _encoder(variant: str, c_in: int, spatial: tuple[int, ...]) -> Iterator[Layer]:
    stem, stages = efficientnet.scaled(variant)
    yield Layer("encoder/conv_stem", "dense", 3, 2, c_in, stem, spatial)
    spatial, c, one = tuple(-(-n // 2) for n in spatial), stem, (1,) * len(spatial)
    for s, stage in enumerate(stages):
        for i in range(stage.repeats):
            name, stride = f"encoder/blocks_{s}_{i}", stage.stride if i == 0 else 1
            wide, separable = c * stage.expansion, stage.expansion == 1
            if not separable:
                yield Layer(f"{name}/conv_pw", "dense", 1, 1, c, wide, spatial)
            yield Layer(f"{name}/conv_dw", "depthwise", stage.window, stride, wide, wide, spatial)
            spatial = tuple(-(-n // stride) for n in spatial)
            yield Layer(f"{name}/se/conv_reduce", "dense", 1, 1, wide, c // 4, one)
            yield Layer(f"{name}/se/conv_expand", "dense", 1, 1, c // 4, wide, one)
            last = "conv_pw" if separable else "conv_pwl"
            yield Layer(f"{name}/{last}", "dense", 1, 1, wide, stage.channels, spatial)
            c = stage.channels


def layers(model: Any, shape: Sequence[int]) -> list[Layer]:
    """Every convolution of a DX-Net, in the order of its forward pass.

    Args:
      model: from `models.build("dxnet")`.
      shape: `(b, *spatial, channels)` of its input.
    """
    _, *spatial, c_in = shape
    spatial = tuple(spatial)
    variant = model.encoder.removeprefix("efficientnet_")
    found = [Layer("full/conv", "dense", 3, 1, c_in, model.stem_width, spatial)]
    found += _encoder(variant, model.stem_width, spatial)
    channels = [model.stem_width, *(f.channels for f in efficientnet.feature_info(variant))]
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
