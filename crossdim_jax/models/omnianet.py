"""Omnia-Net: a U-Net whose encoder starts from weights of the same dimension."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import check_name, lookup
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.decoder import SkipDecoder, by_level, check_upsample
from crossdim_jax.models.encoders import EncoderSpec, split_spec
from crossdim_jax.models.layers import ConvNormAct, require_multiple
from crossdim_jax.ops import ACTIVATIONS, choose


class OmniaNet(nn.Module):
    """Omnia-Net, `(b, *spatial, channels) -> logits (b, *spatial, out_channels)`, no softmax.

    A full-resolution block, the encoder, and a decoder that repeats voxels; the full-resolution
    block feeds both the encoder's stem and the last skip. Made for images; volumes pass through the
    same code. Spatial sizes must be multiples of 32 (ValueError otherwise). `build` fills the
    attributes from a variant.

    Attributes:
      encoder: the encoder, whose norm is the whole network's: "batch" (the paper), "instance",
        "group" or "frozen", see `DXNet`.
      out_channels: logits per pixel, the background's among them.
      stem_width: channels of the full-resolution block; 0: there is none, the image feeds the
        encoder's stem and the last level has no skip but what the encoder gives at /1.
      upsample: "nearest" or "transposed", see `SkipDecoder`.
      activation: of the full-resolution block and the decoder, a key of `ops.ACTIVATIONS`.
      widths, dtype, ops: see `DXNet`.

    Reference: Messaoudi et al. 2023, Sect. 2.1.1 and Figure 2.
    """

    encoder_path: ClassVar[str] = "encoder"  # of its parameters

    out_channels: int = 4
    encoder: EncoderSpec = EncoderSpec()
    stem_width: int = 16
    widths: Sequence[int] = (256, 128, 64, 32, 16)
    upsample: str = "nearest"
    activation: str = "relu"
    dtype: Any = jnp.float32
    ops: str = "auto"

    def divisors(self, nd: int) -> tuple[int, ...]:
        """Divisors that the size along each of nd axes must have."""
        return (self.encoder.feature_info()[-1].reduction,) * nd

    def check_size(self, spatial: Sequence[int]) -> None:
        """Raises ValueError, with a size that fits, unless the network can take this one."""
        require_multiple(spatial, self.divisors(len(spatial)), "Omnia-Net")

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        self.check_size(image.shape[1:-1])
        dtype = jnp.dtype(self.dtype)
        shared = {"dtype": dtype, "ops_mode": self.ops}
        fresh = {"norm": self.encoder.fresh_norm, "activation": self.activation}
        x, full = image.astype(dtype), None
        if self.stem_width:
            x = full = ConvNormAct(self.stem_width, name="full", **fresh, **shared)(x, train=train)
        features = self.encoder.build(name="encoder", **shared)(x, train=train)
        decoder = SkipDecoder(
            tuple(self.widths), upsample=self.upsample, name="decoder", **fresh, **shared
        )
        skips = by_level([full, *features], [1, *self.encoder.reductions()])
        x = decoder(skips, train=train)
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
    given = {k: v for k, v in kwargs.items() if v is not None}
    spec, own = split_spec(lookup("variant", variant, VARIANTS) | given)
    model = OmniaNet(encoder=spec, **own)
    check(model)
    return model


def check(model: Any) -> None:
    """Raises ValueError, listing the known ones, if a name among the attributes is unknown."""
    model.encoder.check()
    check_upsample(model.upsample)
    check_name("activation", model.activation, ACTIVATIONS)
    choose(model.ops)
    jnp.dtype(model.dtype)
