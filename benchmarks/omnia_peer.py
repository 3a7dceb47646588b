"""Omnia-Net (variant "paper", EfficientNet-B0) in PyTorch, under our Flax names.

Modules are named as in the Flax tree. Nothing here imports jax. Tensors are `(b, channels, h, w)`.
In training the batch norms normalise by their batch; running statistics start at mean 0 and
variance 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peer import DECODER_EPS, ENCODER_EPS, FEATURE_STAGES, STAGES, WIDTHS


def same(x: torch.Tensor, window: int, stride: int) -> tuple[torch.Tensor, list[int]]:
    """TensorFlow's SAME: x, padded where that is asymmetric, and what is left to the convolution.

    At stride 1 and odd windows it is symmetric.
    """
    totals = [max((-(-n // stride) - 1) * stride + window - n, 0) for n in x.shape[2:]]
    if all(t % 2 == 0 for t in totals):
        return x, [t // 2 for t in totals]
    return F.pad(x, [p for t in reversed(totals) for p in (t // 2, t - t // 2)]), [0, 0]


class Conv(nn.Conv2d):
    """Convolution in the plane, padded as `same`, or symmetrically (PyTorch's weights)."""

    def __init__(self, c_in, c_out, window, stride=1, groups=1, bias=False, padding="same"):
        super().__init__(c_in, c_out, window, stride, groups=groups, bias=bias)
        self.convention = padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, h, w)` -> `(b, c_out, h / stride, w / stride)`."""
        window, stride = self.kernel_size[0], self.stride[0]
        pad = [window // 2] * 2
        if self.convention == "same":
            x, pad = same(x, window, stride)
        return F.conv2d(x, self.weight, self.bias, stride, pad, 1, self.groups)


class Norm(nn.Module):
    """Affine batch normalisation, then an activation."""

    def __init__(self, channels: int, eps: float, activation=F.silu):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.activation = eps, activation
        self.register_buffer("running_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("running_var", torch.ones(channels), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, *spatial)` -> the same shape."""
        running, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        y = F.batch_norm(x, *running, *affine, self.training, 0.1, self.eps)
        return self.activation(y) if self.activation else y


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over all pixels."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.conv_reduce = Conv(channels, reduced, 1, bias=True)
        self.conv_expand = Conv(reduced, channels, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, h, w)` -> the same shape."""
        gate = self.conv_reduce(x.mean((2, 3), keepdim=True))
        return x * torch.sigmoid(self.conv_expand(F.silu(gate)))


class Block(nn.Module):
    """Depthwise-separable (expansion 1) or inverted residual block; no stochastic depth."""

    def __init__(self, c_in, window, stride, expansion, channels, padding, eps):
        super().__init__()
        wide = c_in * expansion
        self.separable, self.residual = expansion == 1, stride == 1 and c_in == channels
        if self.separable:
            self.bn1, self.bn2 = Norm(wide, eps), Norm(channels, eps, None)
            self.conv_pw = Conv(wide, channels, 1)
        else:
            self.conv_pw, self.bn1 = Conv(c_in, wide, 1), Norm(wide, eps)
            self.bn2, self.bn3 = Norm(wide, eps), Norm(channels, eps, None)
            self.conv_pwl = Conv(wide, channels, 1)
        self.conv_dw = Conv(wide, wide, window, stride, groups=wide, padding=padding)
        self.se = SqueezeExcite(wide, c_in // 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, h, w)` -> `(b, channels, h / stride, w / stride)`."""
        if self.separable:
            return self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x)))))
        y = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """The body of EfficientNet-B0: five features, finest first."""

    def __init__(self, c_in: int, padding: str, eps: float):
        super().__init__()
        self.conv_stem, self.bn1 = Conv(c_in, 32, 3, 2, padding=padding), Norm(32, eps)
        self.order, self.channels, c = [], [32], 32
        for s, (window, stride, expansion, channels, repeats) in enumerate(STAGES):
            for i in range(repeats):
                first = stride if i == 0 else 1
                block = Block(c, window, first, expansion, channels, padding, eps)
                self.add_module(f"blocks_{s}_{i}", block)
                c = channels
                self.order.append((f"blocks_{s}_{i}", s in FEATURE_STAGES and i == repeats - 1))
            if s in FEATURE_STAGES:
                self.channels.append(c)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`(b, c, h, w)` -> features at 1/2, 1/4, 1/8, 1/16 and 1/32."""
        x = self.bn1(self.conv_stem(x))
        features = [x]
        for name, kept in self.order:
            x = getattr(self, name)(x)
            if kept:
                features.append(x)
        return features


class ConvNormAct(nn.Module):
    """Convolution without bias, batch norm, activation."""

    def __init__(self, c_in: int, c_out: int, activation):
        super().__init__()
        self.conv, self.norm = Conv(c_in, c_out, 3), Norm(c_out, DECODER_EPS, activation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, h, w)` -> `(b, c_out, h, w)`."""
        return self.norm(self.conv(x))


class Decoder(nn.Module):
    """Upsampling, concatenated skip, two convolutions; five times."""

    def __init__(self, channels: list[int], transposed: bool, activation):
        super().__init__()
        *skips, c = channels
        self.transposed = transposed
        for level, (width, skip) in enumerate(zip(WIDTHS, reversed(skips), strict=True)):
            if transposed:
                self.add_module(f"up_{level}", nn.ConvTranspose2d(c, c, 2, 2))
            self.add_module(f"conv_{level}_0", ConvNormAct(c + skip, width, activation))
            self.add_module(f"conv_{level}_1", ConvNormAct(width, width, activation))
            c = width

    def forward(self, features: list[torch.Tensor | None]) -> torch.Tensor:
        """Features, coarsest last -> `(b, 16, h, w)` of the finest."""
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


class OmniaNet(nn.Module):
    """`(b, c_in, h, w)` -> logits `(b, c_out, h, w)`.

    Args:
      c_in, c_out: channels of the image, and of the logits.
      stem_width: of the full-resolution block; 0: there is none.
      transposed: transposed convolutions instead of repeated pixels.
      activation: of the full-resolution block and the decoder.
      padding, eps: of the encoder.
    """

    def __init__(
        self,
        c_in=1,
        c_out=4,
        stem_width=16,
        transposed=False,
        activation=F.relu,
        padding="same",
        eps=ENCODER_EPS,
    ):
        super().__init__()
        self.stem_width = stem_width
        if stem_width:
            self.full = ConvNormAct(c_in, stem_width, activation)
        self.encoder = Encoder(stem_width or c_in, padding, eps)
        self.decoder = Decoder([stem_width, *self.encoder.channels], transposed, activation)
        self.head = Conv(WIDTHS[-1], c_out, 3, bias=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, h, w)` -> `(b, c_out, h, w)`."""
        full = self.full(image) if self.stem_width else None
        features = self.encoder(image if full is None else full)
        return self.head(self.decoder([full, *features]))
