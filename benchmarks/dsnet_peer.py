"""DS-Net in PyTorch, both variants, under our Flax names.

Modules are named as in the Flax tree. Nothing here imports jax. Tensors are
`(b, channels, depth, h, w)`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.omnia_peer import OmniaNet
from benchmarks.peer import NORMS, group_norm, instance_norm
from benchmarks.peer_blocks import DECODER_EPS, ENCODER_EPS

WIDTHS = (16, 32, 48, 96)
STRIDES = (3, 2, 2, 4)
TRANSPOSED = ((5, 3, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1))


class Norm(nn.Module):
    """Instance normalisation, affine or not, then SiLU."""

    def __init__(self, channels: int, affine: bool, norm: str):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None
        self.norm = dict(zip(NORMS, (instance_norm, group_norm), strict=True))[norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, depth, h, w)` -> the same shape."""
        return F.silu(self.norm(x, self.weight, self.bias, DECODER_EPS))


class ConvNormAct(nn.Module):
    """Convolution without bias, strided along depth only; instance norm; SiLU."""

    def __init__(self, c_in: int, c_out: int, stride: int, affine: bool, norm: str):
        super().__init__()
        self.conv = nn.Conv3d(c_in, c_out, 3, (stride, 1, 1), 1, bias=False)
        self.norm = Norm(c_out, affine, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, depth, h, w)` -> `(b, c_out, depth / stride, h, w)`."""
        return self.norm(self.conv(x))


class NearestDecoder(nn.Module):
    """Slices repeated to the skip's depth, concatenated skip, two convolutions; four times."""

    def __init__(self, c: int, norm: str):
        super().__init__()
        for level, width in enumerate(reversed(WIDTHS)):
            self.add_module(f"conv_{level}_0", ConvNormAct(c + width, width, 1, True, norm))
            self.add_module(f"conv_{level}_1", ConvNormAct(width, width, 1, True, norm))
            c = width

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """x, and the skips, finest first -> the finest skip's shape."""
        for level, skip in enumerate(reversed(skips)):
            x = torch.cat([F.interpolate(x, skip.shape[2:], mode="nearest"), skip], 1)
            x = getattr(self, f"conv_{level}_1")(getattr(self, f"conv_{level}_0")(x))
        return x


class DSNet(nn.Module):
    """`(b, 4, depth, h, w)` -> logits `(b, 3, depth, h, w)`.

    Args:
      c_in: modalities.
      c_out: regions.
      norm: one of `peer.NORMS`, of the 3D parts.
      released: the authors' code instead of the paper.
    """

    def __init__(
        self, c_in: int = 4, c_out: int = 3, norm: str = "instance_norm", released: bool = False
    ):
        super().__init__()
        self.released, affine = released, not released
        self.down_0 = ConvNormAct(c_in, WIDTHS[0], 1, affine, norm)
        c, self.blocks = WIDTHS[0], []
        for level, (width, stride) in enumerate(zip((*WIDTHS[1:], 4), STRIDES, strict=True), 1):
            names = [f"down_{level}_0", f"down_{level}"] if level > 1 else [f"down_{level}"]
            for name in names:
                step = stride if name == names[-1] else 1
                self.add_module(name, ConvNormAct(c, width, step, affine, norm))
                c = width
            self.blocks.append(names)
        self.net2d = OmniaNet(
            3,
            3,
            stem_width=0,
            transposed=released,
            activation=F.silu if released else F.relu,
            padding="symmetric" if released else "same",
            eps=1e-5 if released else ENCODER_EPS,
        )
        if not released:
            self.decoder = NearestDecoder(4, norm)
        else:
            for level, width in enumerate(reversed(WIDTHS)):
                window, stride, pad = TRANSPOSED[level]
                axes = (window, 1, 1), (stride, 1, 1), (pad, 0, 0)
                self.add_module(f"up_{level}", nn.ConvTranspose3d(c, c, *axes))
                self.add_module(f"conv_{level}", ConvNormAct(c + width, width, 1, affine, norm))
                c = width
        self.head = nn.Conv3d(WIDTHS[0], c_out, 3, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, depth, h, w)` -> `(b, c_out, depth, h, w)`."""
        x = self.down_0(image)
        skips = [x]
        for names in self.blocks:
            for name in names:
                x = getattr(self, name)(x)
            skips.append(x)
        x = skips.pop()
        images = x.flatten(0, 1)  # (b * 4, 3 slices, h, w): a channel is an image
        x = self.net2d(images).unflatten(0, (-1, 4))
        if not self.released:
            return self.head(self.decoder(x, skips))
        for level, skip in enumerate(reversed(skips)):
            x = torch.cat([getattr(self, f"up_{level}")(x), skip], 1)
            x = getattr(self, f"conv_{level}")(x)
        return self.head(x)
