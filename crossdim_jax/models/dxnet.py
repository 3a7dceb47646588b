"""DX-Net: a 3D U-Net whose encoder is inflated from 2D weights."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import lookup
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.decoder import SkipDecoder, by_level
from crossdim_jax.models.encoders import EncoderSpec, split_spec
from crossdim_jax.models.layers import ConvNormAct, require_multiple
from crossdim_jax.ops import choose


class DXNet(nn.Module):
    """DX-Net, `(b, *spatial, modalities) -> logits (b, *spatial, out_channels)`, no sigmoid.

    A full-resolution block, the encoder, and a decoder with transposed convolutions; the
    full-resolution block feeds both the encoder's stem and the last skip. Spatial sizes must be
    multiples of `divisors` (ValueError otherwise): 32, or less along depth where the encoder's
    strides are. `build` fills the attributes from a variant.

    Attributes:
      out_channels: logits per voxel; 3 for the regions WT, TC, ET.
      encoder: the encoder. Its norm is the whole network's: "instance" (the paper), "batch" (the
        released code), "group", or "frozen": BatchNorm everywhere, that of the encoder with its
        running statistics always. Depth strides are 1 or 2; the decoder undoes those there are.
      stem_width: channels of the full-resolution block.
      widths: channels of the decoder's levels, coarsest first.
      dtype: compute dtype, e.g. "bfloat16"; parameters and logits are float32.
      ops: "auto", "lax", "fast" or "unfolded", see `ops.choose`.

    Reference: Messaoudi et al. 2023, Sect. 2.2.1 and Figure 6.
    """

    encoder_path: ClassVar[str] = "encoder"  # of its parameters

    out_channels: int = 3
    encoder: EncoderSpec = EncoderSpec(norm="instance")
    stem_width: int = 16
    widths: Sequence[int] = (256, 128, 64, 32, 16)
    dtype: Any = jnp.float32
    ops: str = "auto"

    def divisors(self, nd: int) -> tuple[int, ...]:
        """Divisors that the size along each of nd axes must have."""
        plane = self.encoder.feature_info()[-1].reduction
        return (self.encoder.depth_reductions()[-1], plane, plane) if nd == 3 else (plane,) * nd

    def check_size(self, spatial: Sequence[int]) -> None:
        """Raises ValueError, with a size that fits, unless the network can take this one."""
        require_multiple(spatial, self.divisors(len(spatial)), "DX-Net")

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        self.check_size(image.shape[1:-1])
        dtype = jnp.dtype(self.dtype)
        shared = {"dtype": dtype, "ops_mode": self.ops}
        norm = self.encoder.fresh_norm
        full = ConvNormAct(self.stem_width, norm=norm, name="full", **shared)
        x = full(image.astype(dtype), train=train)
        features = self.encoder.build(name="encoder", **shared)(x, train=train)
        decoder = SkipDecoder(tuple(self.widths), norm=norm, name="decoder", **shared)
        skips = by_level([x, *features], [1, *self.encoder.reductions()])
        x = decoder(skips, train=train)
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
      ValueError: the variant, the encoder, the norm or a padding is unknown, or the depth options
        do not fit the encoder.
    """
    given = {k: v for k, v in kwargs.items() if v is not None}
    spec, own = split_spec(lookup("variant", variant, VARIANTS) | given, deep=True)
    model = DXNet(encoder=spec, **own)
    spec.check()
    choose(model.ops)
    jnp.dtype(model.dtype)
    plane, deep = (1, *spec.reductions()), (1, *spec.depth_reductions())
    steps = [(plane[i + 1] // plane[i], deep[i + 1] // deep[i]) for i in range(len(plane) - 1)]
    if any(step > most or step & (step - 1) for most, step in steps):
        raise ValueError(
            f"depth_strides={spec.depth_strides} reduce depth by {deep[1:]} at the features, which "
            f"are reduced by {plane[1:]} in the plane, but the decoder at most doubles depth where "
            "it doubles the plane"
        )
    return model
