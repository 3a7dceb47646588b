"""DX-Net (variant "paper") in PyTorch, and the way from our Flax parameters into it.

Modules are named as in the Flax tree, so that loading weights is a change of layout. Nothing here
imports jax. Tensors are `(b, channels, *spatial)`.
"""

from collections.abc import Mapping

import numpy as np
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
STEM_WIDTH = 16
ENCODER_EPS, DECODER_EPS = 1e-3, 1e-5
NORMS = ("instance_norm", "group_norm")


class Conv(nn.Conv3d):
    """Convolution that pads as TensorFlow's SAME: `F.pad` where that is asymmetric (stride 2)."""

    def __init__(self, c_in, c_out, window, stride=1, groups=1, bias=False):
        super().__init__(c_in, c_out, window, stride, groups=groups, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *(spatial / stride))`."""
        k, s = self.kernel_size[0], self.stride[0]
        totals = [max((-(-n // s) - 1) * s + k - n, 0) for n in x.shape[2:]]
        if all(t % 2 == 0 for t in totals):
            pad = [t // 2 for t in totals]
        else:
            x = F.pad(x, [p for t in reversed(totals) for p in (t // 2, t - t // 2)])
            pad = 0
        return F.conv3d(x, self.weight, self.bias, s, pad, 1, self.groups)


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
    """Affine instance normalisation, then SiLU unless told otherwise."""

    def __init__(self, channels: int, eps: float, act: bool = True, norm: str = "instance_norm"):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps, self.act = eps, act
        self.norm = {"instance_norm": instance_norm, "group_norm": group_norm}[norm]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, *spatial)` -> the same shape."""
        y = self.norm(x, self.weight, self.bias, self.eps)
        return F.silu(y) if self.act else y


class SqueezeExcite(nn.Module):
    """Channel gate from the mean over all voxels."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.conv_reduce = Conv(channels, reduced, 1, bias=True)
        self.conv_expand = Conv(reduced, channels, 1, bias=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, *spatial)` -> the same shape."""
        gate = self.conv_reduce(x.mean((2, 3, 4), keepdim=True))
        return x * torch.sigmoid(self.conv_expand(F.silu(gate)))


class Block(nn.Module):
    """Depthwise-separable (expansion 1) or inverted residual block; no stochastic depth."""

    def __init__(self, c_in, window, stride, expansion, channels, norm):
        super().__init__()
        wide = c_in * expansion
        norms = [Norm(wide, ENCODER_EPS, True, norm), Norm(channels, ENCODER_EPS, False, norm)]
        self.separable, self.residual = expansion == 1, stride == 1 and c_in == channels
        if self.separable:
            self.bn1, self.bn2 = norms
            self.conv_pw = Conv(wide, channels, 1)
        else:
            self.conv_pw = Conv(c_in, wide, 1)
            self.bn1 = Norm(wide, ENCODER_EPS, True, norm)
            self.bn2, self.bn3 = norms
            self.conv_pwl = Conv(wide, channels, 1)
        self.conv_dw = Conv(wide, wide, window, stride, groups=wide)
        self.se = SqueezeExcite(wide, c_in // 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, channels, *(spatial / stride))`."""
        if self.separable:
            return self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x)))))
        y = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


class Encoder(nn.Module):
    """The body of a 3D EfficientNet-B0: five features, finest first."""

    def __init__(self, c_in: int, norm: str):
        super().__init__()
        self.conv_stem, self.bn1 = Conv(c_in, 32, 3, 2), Norm(32, ENCODER_EPS, True, norm)
        self.blocks, self.channels, c = [], [32], 32
        for s, (window, stride, expansion, channels, repeats) in enumerate(STAGES):
            for i in range(repeats):
                block = Block(c, window, stride if i == 0 else 1, expansion, channels, norm)
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
    """Convolution without bias, instance norm, SiLU."""

    def __init__(self, c_in: int, c_out: int, norm: str):
        super().__init__()
        self.conv, self.norm = Conv(c_in, c_out, 3), Norm(c_out, DECODER_EPS, True, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *spatial)`."""
        return self.norm(self.conv(x))


class Decoder(nn.Module):
    """Transposed convolution, concatenated skip, two convolutions; five times."""

    def __init__(self, channels: list[int], norm: str):
        super().__init__()
        *skips, c = channels
        for level, (width, skip) in enumerate(zip(WIDTHS, reversed(skips), strict=True)):
            self.add_module(f"up_{level}", nn.ConvTranspose3d(c, c, 2, 2))
            self.add_module(f"conv_{level}_0", ConvNormAct(c + skip, width, norm))
            self.add_module(f"conv_{level}_1", ConvNormAct(width, width, norm))
            c = width

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features, coarsest last -> `(b, 16, *spatial of the finest)`."""
        *skips, x = features
        for level, skip in enumerate(reversed(skips)):
            x = torch.cat([getattr(self, f"up_{level}")(x), skip], 1)
            x = getattr(self, f"conv_{level}_1")(getattr(self, f"conv_{level}_0")(x))
        return x


class DXNet(nn.Module):
    """`(b, 4, *spatial)` -> logits `(b, 3, *spatial)`; 12,542,831 parameters.

    Args:
      c_in: modalities.
      c_out: regions.
      norm: one of `NORMS`, which are equal in value: whichever has the faster kernels.
    """

    def __init__(self, c_in: int = 4, c_out: int = 3, norm: str = "instance_norm"):
        super().__init__()
        self.full = ConvNormAct(c_in, STEM_WIDTH, norm)
        self.encoder = Encoder(STEM_WIDTH, norm)
        self.decoder = Decoder([STEM_WIDTH, *self.encoder.channels], norm)
        self.head = Conv(WIDTHS[-1], c_out, 3, bias=True)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """`(b, c_in, *spatial)` -> `(b, c_out, *spatial)`."""
        x = self.full(image)
        return self.head(self.decoder([x, *self.encoder(x)]))


def dice_bce(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The mean over samples and regions of soft Dice and binary cross-entropy, as our loss."""
    logits, axes = logits.float(), (2, 3, 4)
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
