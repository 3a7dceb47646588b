"""DX-Net: a 3D U-Net whose EfficientNet encoder is inflated from 2D weights."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.models import encoders
from crossdim_jax.models.decoder import SkipDecoder
from crossdim_jax.models.layers import Conv, ConvNormAct, check_norm, require_multiple
from crossdim_jax.ops import choose, explicit_padding


class DXNet(nn.Module):
    """DX-Net, `(b, *spatial, modalities) -> logits (b, *spatial, out_channels)`, no sigmoid.

    A full-resolution block, the encoder, and a decoder with transposed convolutions; the
    full-resolution block feeds both the encoder's stem and the last skip. Spatial sizes must be
    multiples of 32 (ValueError otherwise). `build` fills the attributes from a variant.

    Attributes:
      out_channels: logits per voxel; 3 for the regions WT, TC, ET.
      encoder: a key of `encoders.ENCODERS`.
      norm: "instance" (the paper) or "batch" (the released code) or "group".
      padding, encoder_eps: the convention of the encoder's weights, see `EfficientNet`.
      drop_path_rate: stochastic depth of the encoder.
      stem_width: channels of the full-resolution block.
      widths: channels of the decoder's levels, coarsest first.
      dtype: compute dtype, e.g. "bfloat16"; parameters and logits are float32.
      ops: "auto", "lax" or "fast", see `ops.choose`.

    Reference: Messaoudi et al. 2023, Sect. 2.2.1 and Figure 6.
    """

    out_channels: int = 3
    encoder: str = "efficientnet_b0"
    norm: str = "instance"
    padding: str = "same"
    encoder_eps: float = 1e-3
    drop_path_rate: float = 0.2
    stem_width: int = 16
    widths: Sequence[int] = (256, 128, 64, 32, 16)
    dtype: Any = jnp.float32
    ops: str = "auto"

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        require_multiple(image.shape[1:-1], 32, "DX-Net")
        dtype, shared = (
            jnp.dtype(self.dtype),
            {"dtype": jnp.dtype(self.dtype), "ops_mode": self.ops},
        )
        full = ConvNormAct(self.stem_width, norm=self.norm, name="full", **shared)
        x = full(image.astype(dtype), train=train)
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
        decoder = SkipDecoder(tuple(self.widths), self.norm, name="decoder", **shared)
        x = decoder([x, *features], train=train)
        logits = Conv(self.out_channels, use_bias=True, name="head", **shared)(x)
        return logits.astype(jnp.float32)


VARIANTS = {
    # The paper: InstanceNorm throughout. Noisy-student weights are TensorFlow-trained, hence SAME
    # padding and eps 1e-3. It does not state stochastic depth: timm's default.
    "paper": {
        "norm": "instance",
        "padding": "same",
        "encoder_eps": 1e-3,
        "drop_path_rate": 0.2,
    },
    # The authors' code: BatchNorm kept, PyTorch padding and eps even with TensorFlow weights.
    "released": {
        "norm": "batch",
        "padding": "symmetric",
        "encoder_eps": 1e-5,
        "drop_path_rate": 0.4,
    },
}


def build(*, variant: str = "paper", **kwargs: Any) -> DXNet:
    """A DX-Net as a variant says, with any attribute overridden; None means the variant's value.

    Raises:
      ValueError: the variant, the encoder, the norm or the padding is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"DX-Net variant {variant!r} is unknown; known: {', '.join(VARIANTS)}")
    given = {k: v for k, v in kwargs.items() if v is not None}
    model = DXNet(**(VARIANTS[variant] | given))
    # Here rather than when it is traced: the message should come before any data is read.
    encoders.check(model.encoder)
    check_norm(model.norm)
    explicit_padding((), (), (), model.padding)
    choose(model.ops)
    jnp.dtype(model.dtype)
    return model
