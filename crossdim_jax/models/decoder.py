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
            large as the one before or half of it along every axis. Any but the coarsest may be
            None: that level has no skip, see `by_level`.
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
                skip = _no_channels(x, skips[-1 - level :: -1])
            if self.upsample == "nearest":
                below = Upsampled(x)
            else:
                factors = upsampling(x.shape[1:-1], skip.shape[1:-1])
                below = UpConv(factors, self.dtype, name=f"up_{level}")(x)
            x = block(0)(skip, below=below, train=train)
            x = block(1)(x, train=train)
        return x


def by_level(
    tensors: Sequence[jax.Array | None], reductions: Sequence[int]
) -> list[jax.Array | None]:
    """Tensors by the halvings of the plane that lead to them, as `SkipDecoder` takes them.

    Args:
      tensors: finest first, None for one that there is not.
      reductions: of each in the plane: powers of two.

    Returns:
      one entry for /1, /2, /4 and so on to the coarsest: the tensors of that reduction, side by
      side as channels, or None where there are none.

    Raises:
      ValueError: a reduction is no power of two.
    """
    levels: list[list[jax.Array]] = [[] for _ in range(max(reductions).bit_length())]
    for tensor, reduction in zip(tensors, reductions, strict=True):
        if reduction < 1 or reduction & (reduction - 1):
            raise ValueError(f"features reduced by {tuple(reductions)}: expected powers of two")
        if tensor is not None:
            levels[reduction.bit_length() - 1].append(tensor)
    return [jnp.concatenate(v, -1) if len(v) > 1 else v[0] if v else None for v in levels]


def _no_channels(x: jax.Array, finer: Sequence[jax.Array | None]) -> jax.Array:
    """A skip without channels of the size that x is upsampled to: twice its own.

    finer: the skips from this level on. The next one there is says which axes are doubled: one
      that is long enough already, such as depth that was strided less than the plane, stays.
    """
    sizes = [2 * n for n in x.shape[1:-1]]
    for later, skip in enumerate(finer):
        if skip is not None:
            pairs = zip(x.shape[1:-1], skip.shape[1:-1], strict=True)
            sizes = [n if n * 2**later >= target else 2 * n for n, target in pairs]
            break
    return jnp.zeros((x.shape[0], *sizes, 0), x.dtype)


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
