"""One U-Net decoder for every network, driven by the features it is given."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import check_name
from crossdim_jax.models.conv import UpConv, Upsampled
from crossdim_jax.models.layers import ConvNormAct

UPSAMPLES = ("transposed", "nearest")


class SkipDecoder(nn.Module):
    """Decoder from the coarsest feature to the finest skip.

    A level is: upsample to the skip's size, concatenate the skip, two (conv3, norm, activation).

    Attributes:
      widths: channels of each level, coarsest first.
      upsample: "transposed", a convolution to as many channels as it gets, with bias, where the
        skip has twice as many voxels; or "nearest", which has no parameters and takes any size.
      norm, activation, eps, affine: of every convolution.
      dtype: compute dtype.
      ops_mode: see `ops.choose`.

    Reference: Messaoudi et al. 2023, Sect. 2.2.1.
    """

    widths: Sequence[int] = (256, 128, 64, 32, 16)
    upsample: str = "transposed"
    norm: str = "instance"
    activation: str = "silu"
    eps: float = 1e-5
    affine: bool = True
    dtype: Any = jnp.float32
    ops_mode: str = "auto"

    @nn.compact
    def __call__(self, features: Sequence[jax.Array], *, train: bool = False) -> jax.Array:
        """Decodes.

        Args:
          features: coarsest last, one more than `widths`; with transposed convolutions each as
            large as the one before or half of it along every axis. The finest may be None: the
            last level then doubles its input and has no skip.
          train: whether batch statistics are updated.

        Returns:
          `(b, *spatial of the last level, widths[-1])`.

        Raises:
          ValueError: the number of features does not fit the widths, or their sizes one another;
            or the upsampling is unknown.
        """
        check_upsample(self.upsample)
        *skips, x = features
        if len(skips) != len(self.widths):
            raise ValueError(f"{len(self.widths)} levels need as many skips, got {len(skips)}")
        for level, (width, skip) in enumerate(zip(self.widths, reversed(skips), strict=True)):

            def block(half, width=width, level=level):
                return ConvNormAct(
                    width,
                    norm=self.norm,
                    activation=self.activation,
                    eps=self.eps,
                    affine=self.affine,
                    dtype=self.dtype,
                    ops_mode=self.ops_mode,
                    name=f"conv_{level}_{half}",
                )

            if skip is None:
                skip = jnp.zeros((x.shape[0], *(2 * n for n in x.shape[1:-1]), 0), x.dtype)
            if self.upsample == "nearest":
                below = Upsampled(x)
            else:
                factors = upsampling(x.shape[1:-1], skip.shape[1:-1])
                below = UpConv(factors, self.dtype, name=f"up_{level}")(x)
            x = block(0)(skip, below=below, train=train)
            x = block(1)(x, train=train)
        return x


def check_upsample(upsample: str) -> None:
    """Raises ValueError, listing the known ways of upsampling, unless this is one."""
    check_name("upsample", upsample, UPSAMPLES)


def upsampling(coarse: Sequence[int], fine: Sequence[int]) -> tuple[int, ...]:
    """The factor per axis from one feature's size to the next one's, each 1 or 2."""
    factors = tuple(f // c for c, f in zip(coarse, fine, strict=True))
    exact = all(c * k == f for c, k, f in zip(coarse, factors, fine, strict=True))
    if not exact or not set(factors) <= {1, 2}:
        raise ValueError(
            f"features of sizes {tuple(coarse)} and {tuple(fine)} follow one another: expected "
            "the same size or exactly twice as much along every axis"
        )
    return factors
