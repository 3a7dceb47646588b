"""Omnia-Net: a U-Net whose EfficientNet encoder starts from weights of the same dimension."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.models import encoders
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.decoder import SkipDecoder, check_upsample
from crossdim_jax.models.layers import ConvNormAct, check_norm, require_multiple
from crossdim_jax.ops import ACTIVATIONS, choose, explicit_padding


class OmniaNet(nn.Module):
    """Omnia-Net, `(b, *spatial, channels) -> logits (b, *spatial, out_channels)`, no softmax.

    A full-resolution block, the encoder, and a decoder that repeats voxels; the full-resolution
    block feeds both the encoder's stem and the last skip. Made for images; volumes pass through the
    same code. Spatial sizes must be multiples of 32 (ValueError otherwise). `build` fills the
    attributes from a variant.

    Attributes:
      encoder, padding, encoder_eps, drop_path_rate, widths, dtype, ops: see `DXNet`.
      out_channels: logits per pixel, the background's among them.
      norm: "batch" (the paper), "instance", "group" or "frozen", see `DXNet`.
      stem_width: channels of the full-resolution block; 0: there is none, the image feeds the
        encoder's stem and the last level has no skip.
      upsample: "nearest" or "transposed", see `SkipDecoder`.
      activation: of the full-resolution block and the decoder, a key of `ops.ACTIVATIONS`.

    Reference: Messaoudi et al. 2023, Sect. 2.1.1 and Figure 2.
    """

    encoder_path: ClassVar[str] = "encoder"  # of its parameters

    out_channels: int = 4
    encoder: str = "efficientnet_b0"
    norm: str = "batch"
    padding: str = "same"
    encoder_eps: float = 1e-3
    drop_path_rate: float = 0.2
    stem_width: int = 16
    widths: Sequence[int] = (256, 128, 64, 32, 16)
    upsample: str = "nearest"
    activation: str = "relu"
    dtype: Any = jnp.float32
    ops: str = "auto"

    def divisors(self, nd: int) -> tuple[int, ...]:
        """What the size along each of nd axes must be a multiple of."""
        return (32,) * nd

    def check_size(self, spatial: Sequence[int]) -> None:
        """Raises ValueError, with a size that fits, unless the network can take this one."""
        require_multiple(spatial, self.divisors(len(spatial)), "Omnia-Net")

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        self.check_size(image.shape[1:-1])
        dtype = jnp.dtype(self.dtype)
        shared = {"dtype": dtype, "ops_mode": self.ops}
        fresh = {"norm": "batch" if self.norm == "frozen" else self.norm}
        fresh["activation"] = self.activation
        x, full = image.astype(dtype), None
        if self.stem_width:
            x = full = ConvNormAct(self.stem_width, name="full", **fresh, **shared)(x, train=train)
        encoder = encoders.build(
            self.encoder,
            norm=self.norm,
            padding=self.padding,
            eps=self.encoder_eps,
            drop_path_rate=self.drop_path_rate,
            name="encoder",
            **shared,
        )
        features = encoder(x, train=train)
        decoder = SkipDecoder(
            tuple(self.widths), upsample=self.upsample, name="decoder", **fresh, **shared
        )
        x = decoder([full, *features], train=train)
        logits = Conv(self.out_channels, use_bias=True, name="head", **shared)(x)
        return logits.astype(jnp.float32)


VARIANTS = {
    # The paper. Noisy-student weights are TensorFlow-trained, hence SAME padding and eps 1e-3. It
    # does not state stochastic depth: timm's default.
    "paper": {"padding": "same", "encoder_eps": 1e-3, "drop_path_rate": 0.2},
    # The authors' code: PyTorch padding and eps even with TensorFlow weights.
    "released": {"padding": "symmetric", "encoder_eps": 1e-5, "drop_path_rate": 0.4},
}


def build(*, variant: str = "paper", **kwargs: Any) -> OmniaNet:
    """An Omnia-Net as a variant says, with any attribute overridden; None means the variant's.

    Raises:
      ValueError: the variant, the encoder, the norm, a padding, the upsampling or the activation is
        unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"Omnia-Net variant {variant!r} is unknown; known: {', '.join(VARIANTS)}")
    given = {k: v for k, v in kwargs.items() if v is not None}
    model = OmniaNet(**(VARIANTS[variant] | given))
    check(model)
    return model


def check(model: Any) -> None:
    """Raises ValueError for an attribute's value that is unknown, listing the known ones.

    Here rather than when it is traced: the message should come before any data is read.
    """
    encoders.row(model.encoder)
    check_norm(model.norm)
    explicit_padding((), (), (), model.padding)
    check_upsample(model.upsample)
    if model.activation not in ACTIVATIONS:
        known = ", ".join(map(str, ACTIVATIONS))
        raise ValueError(f"activation={model.activation!r} is unknown; known: {known}")
    choose(model.ops)
    jnp.dtype(model.dtype)
