"""DX-Net (variant "paper") in PyTorch, and the way from our Flax parameters into it.

Modules are named as in the Flax tree, so that loading weights is a change of layout. Nothing here
imports jax. Tensors are `(b, channels, *spatial)`.
"""

import functools
from collections.abc import Mapping

import numpy as np
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

STEM_WIDTH = 16
NORMS = ("instance_norm", "group_norm")


class Conv(nn.Conv3d):
    """Convolution that pads as TensorFlow's SAME: `F.pad` where that is asymmetric (stride 2)."""

    def __init__(self, c_in, c_out, window, stride=1, groups=1, bias=False):
        super().__init__(c_in, c_out, window, stride, groups=groups, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *(spatial / stride))`."""
        stride = self.stride[0]
        x, pad = same(x, self.kernel_size[0], stride)
        return F.conv3d(x, self.weight, self.bias, stride, pad, 1, self.groups)


def instance_norm(x, weight, bias, eps):
    """Instance norm of any size: `F.instance_norm` refuses a single voxel, the operator does not.

    At 1/32 of 32^3 there is one: the output is the bias, and no gradient reaches the input. On a
    CPU (torch 2.15) its gradients are wrong when the incoming gradient is channels-last.
    """
    cudnn = torch.backends.cudnn.enabled
    return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, cudnn)


def group_norm(x, weight, bias, eps):
    """Instance norm as a group norm with one channel a group: the same numbers, other kernels."""
    return torch.group_norm(x, x.shape[1], weight, bias, eps)


class Norm(nn.Module):
    """Affine instance normalisation, then an activation."""

    def __init__(self, channels: int, eps: float, activation=F.silu, norm: str = "instance_norm"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.activation = eps, activation
        self.norm = {"instance_norm": instance_norm, "group_norm": group_norm}[norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, *spatial)` -> the same shape."""
        y = self.norm(x, self.weight, self.bias, self.eps)
        return self.activation(y) if self.activation else y


class DXNet(nn.Module):
    """`(b, 4, *spatial)` -> logits `(b, 3, *spatial)`; 12,542,831 parameters.

    Args:
      c_in: modalities.
      c_out: regions.
      norm: one of `NORMS`, which are equal in value: whichever has the faster kernels.
    """

    def __init__(self, c_in: int = 4, c_out: int = 3, norm: str = "instance_norm"):
        super().__init__()
        encoder_norm = functools.partial(Norm, eps=ENCODER_EPS, norm=norm)
        decoder_norm = functools.partial(Norm, eps=DECODER_EPS, norm=norm)
        self.full = ConvNormAct(c_in, STEM_WIDTH, Conv, decoder_norm)
        self.encoder = Encoder(STEM_WIDTH, Conv, encoder_norm)
        channels = [STEM_WIDTH, *self.encoder.channels]
        self.decoder = Decoder(channels, Conv, decoder_norm, nn.ConvTranspose3d)
        self.head = Conv(WIDTHS[-1], c_out, 3, bias=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *spatial)`."""
        x = self.full(image)
        return self.head(self.decoder([x, *self.encoder(x)]))


def wide(x: torch.Tensor) -> torch.Tensor:
    """Tensor in float32, if it was in a shorter type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def dice_bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean over samples and regions of soft Dice and binary cross-entropy, as our loss."""
    logits, axes = wide(logits), (2, 3, 4)
    p = torch.sigmoid(logits)
    true = target.sum(axes)
    dice = 1 - 2 * (p * target).sum(axes) / (p.sum(axes) + true + 1e-5)
    dice = torch.where(true > 0, dice, p.mean(axes))
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _torch_name(path: str) -> str:
    """`encoder/bn1/scale` -> `encoder.bn1.weight`."""
    *modules, leaf = path.split("/")
    return ".".join([*modules, LEAVES[leaf]])


def _transposition(path: str, nd: int) -> tuple[int, ...]:
    """The order of axes that turns a Flax kernel, `(*window, in, out)`, into torch's.

    `(out, in, *window)`, or `(in, out, *window)` of a transposed convolution.
    """
    ends = (nd, nd + 1) if path.split("/")[-2].startswith("up_") else (nd + 1, nd)
    return (*ends, *range(nd))


def load(net: nn.Module, params: Mapping[str, np.ndarray]) -> None:
    """Copies Flax parameters into the network.

    Args:
      net: the network.
      params: Flax path, `encoder/conv_stem/kernel`, -> array; must fill the network exactly.
    """
    state = {}
    for path, value in params.items():
        value = np.asarray(value, np.float32)
        if path.endswith("/kernel"):
            value = value.transpose(_transposition(path, value.ndim - 2))
        state[_torch_name(path)] = torch.from_numpy(value.copy())
    net.load_state_dict(state, strict=True)


def gradients(net: nn.Module, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The parameters' gradients under their Flax paths and in Flax layout.

    Args:
      net: a network after `backward`.
      like: Flax paths, as given to `load`.
    """
    tensors, found = dict(net.named_parameters()), {}
    for path in like:
        value = tensors[_torch_name(path)].grad.cpu()
        value = (value if value.dtype == torch.float64 else value.float()).numpy()
        if path.endswith("/kernel"):
            value = value.transpose(np.argsort(_transposition(path, value.ndim - 2)))
        found[path] = value
    return found
