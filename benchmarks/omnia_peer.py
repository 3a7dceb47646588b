"""Omnia-Net (variant "paper", EfficientNet-B0) in PyTorch, under our Flax names.

Modules are named as in the Flax tree. Nothing here imports jax. Tensors are `(b, channels, h, w)`.
In training the batch norms normalise by their batch; running statistics start at mean 0 and
variance 1.
"""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peer_blocks import (
    DECODER_EPS,
    ENCODER_EPS,
    WIDTHS,
    ConvNormAct,
    Decoder,
    Encoder,
    same,
)


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
        decoder_norm = functools.partial(Norm, eps=DECODER_EPS, activation=activation)
        if stem_width:
            self.full = ConvNormAct(c_in, stem_width, Conv, decoder_norm)
        encoder_conv = functools.partial(Conv, padding=padding)
        encoder_norm = functools.partial(Norm, eps=eps)
        self.encoder = Encoder(stem_width or c_in, encoder_conv, encoder_norm)
        channels = [stem_width, *self.encoder.channels]
        up = nn.ConvTranspose2d if transposed else None
        self.decoder = Decoder(channels, Conv, decoder_norm, up)
        self.head = Conv(WIDTHS[-1], c_out, 3, bias=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, h, w)` -> `(b, c_out, h, w)`."""
        full = self.full(image) if self.stem_width else None
        features = self.encoder(image if full is None else full)
        return self.head(self.decoder([full, *features]))
