"""Blocks of the PyTorch networks, in 2D and in 3D: EfficientNet-B0's body and the decoder.

Modules are named as in the Flax tree. Nothing here imports jax. Tensors are
`(b, channels, *spatial)`. What differs between the networks is given to the modules:

    conv(c_in, c_out, window, stride=1, groups=1, bias=False): a convolution that pads by itself;
    norm(channels): a norm and its activation, without that if called with activation=None.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

# (window, stride, expansion, channels, repeats): EfficientNet-B0, Tan and Le 2019.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
FEATURE_STAGES = (1, 2, 4, 6)
WIDTHS = (256, 128, 64, 32, 16)
ENCODER_EPS, DECODER_EPS = 1e-3, 1e-5

Make = Callable[..., nn.Module]


def same(x: torch.Tensor, window: int, stride: int) -> tuple[torch.Tensor, list[int]]:
    """TensorFlow's SAME: x, padded where that is asymmetric, and what is left to the convolution.

    At stride 1 and odd windows it is symmetric.
    """
    totals = [max((-(-n // stride) - 1) * stride + window - n, 0) for n in x.shape[2:]]
    if all(t % 2 == 0 for t in totals):
        return x, [t // 2 for t in totals]
    return F.pad(x, [p for t in reversed(totals) for p in (t // 2, t - t // 2)]), [0] * len(totals)


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over all voxels."""

    def __init__(self, channels: int, reduced: int, conv: Make):
        super().__init__()
        self.conv_reduce = conv(channels, reduced, 1, bias=True)
        self.conv_expand = conv(reduced, channels, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, *spatial)` -> the same shape."""
        gate = self.conv_reduce(x.mean(tuple(range(2, x.ndim)), keepdim=True))
        return x * torch.sigmoid(self.conv_expand(F.silu(gate)))


class Block(nn.Module):
    """Depthwise-separable (expansion 1) or inverted residual block; no stochastic depth."""

    def __init__(self, c_in, window, stride, expansion, channels, conv: Make, norm: Make):
        super().__init__()
        wide = c_in * expansion
        self.separable, self.residual = expansion == 1, stride == 1 and c_in == channels
        if self.separable:
            self.bn1, self.bn2 = norm(wide), norm(channels, activation=None)
            self.conv_pw = conv(wide, channels, 1)
        else:
            self.conv_pw, self.bn1 = conv(c_in, wide, 1), norm(wide)
            self.bn2, self.bn3 = norm(wide), norm(channels, activation=None)
            self.conv_pwl = conv(wide, channels, 1)
        self.conv_dw = conv(wide, wide, window, stride, groups=wide)
        self.se = SqueezeExcite(wide, c_in // 4, conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, channels, *(spatial / stride))`."""
        if self.separable:
            return self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x)))))
        y = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """The body of EfficientNet-B0: five features, finest first."""

    def __init__(self, c_in: int, conv: Make, norm: Make):
        super().__init__()
        self.conv_stem, self.bn1 = conv(c_in, 32, 3, 2), norm(32)
        self.blocks, self.channels, c = [], [32], 32
        for s, (window, stride, expansion, channels, repeats) in enumerate(STAGES):
            for i in range(repeats):
                first = stride if i == 0 else 1
                block = Block(c, window, first, expansion, channels, conv, norm)
                self.add_module(f"blocks_{s}_{i}", block)
                c = channels
                self.blocks.append((f"blocks_{s}_{i}", s in FEATURE_STAGES and i == repeats - 1))
            if s in FEATURE_STAGES:
                self.channels.append(c)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`(b, c, *spatial)` -> features at 1/2, 1/4, 1/8, 1/16 and 1/32."""
        x = self.bn1(self.conv_stem(x))
        features = [x]
        for name, kept in self.blocks:
            x = getattr(self, name)(x)
            if kept:
                features.append(x)
        return features


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, activation."""

    def __init__(self, c_in: int, c_out: int, conv: Make, norm: Make):
        super().__init__()
        self.conv, self.norm = conv(c_in, c_out, 3), norm(c_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *spatial)`."""
        return self.norm(self.conv(x))


class Decoder(nn.Module):
    """Upsampling, concatenated skip, two convolutions; five times.

    Args:
      channels: of the features, coarsest last.
      conv, norm: see above.
      up: the transposed convolution, `up(c_in, c_out, window, stride)`; None repeats voxels.
    """

    def __init__(self, channels: list[int], conv: Make, norm: Make, up: Make | None):
        super().__init__()
        *skips, c = channels
        self.transposed = up is not None
        for level, (width, skip) in enumerate(zip(WIDTHS, reversed(skips), strict=True)):
            if up is not None:
                self.add_module(f"up_{level}", up(c, c, 2, 2))
            self.add_module(f"conv_{level}_0", ConvNormAct(c + skip, width, conv, norm))
            self.add_module(f"conv_{level}_1", ConvNormAct(width, width, conv, norm))
            c = width

    def forward(self, features: list[torch.Tensor | None]) -> torch.Tensor:
        """Features, coarsest last; None: no skip -> `(b, 16, *spatial of the finest)`."""
        *skips, x = features
        for level, skip in enumerate(reversed(skips)):
            if self.transposed:
                x = getattr(self, f"up_{level}")(x)
            else:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            if skip is not None:
                x = torch.cat([x, skip], 1)
            x = getattr(self, f"conv_{level}_1")(getattr(self, f"conv_{level}_0")(x))
        return x
