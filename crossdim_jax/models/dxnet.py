"""DX-Net: a 3D U-Net whose EfficientNet encoder is inflated from 2D weights."""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.models import encoders
from crossdim_jax.models.conv import Conv
from crossdim_jax.models.decoder import SkipDecoder
from crossdim_jax.models.layers import ConvNormAct, check_norm, require_multiple
from crossdim_jax.ops import choose, explicit_padding


class DXNet(nn.Module):
    """DX-Net, `(b, *spatial, modalities) -> logits (b, *spatial, out_channels)`, no sigmoid.

    A full-resolution block, the encoder, and a decoder with transposed convolutions; the
    full-resolution block feeds both the encoder's stem and the last skip. Spatial sizes must be
    multiples of `divisors` (ValueError otherwise): 32, or less along depth where the encoder's
    strides are. `build` fills the attributes from a variant.

    Attributes:
      out_channels: logits per voxel; 3 for the regions WT, TC, ET.
      encoder: a key of `encoders.ENCODERS`.
      norm: "instance" (the paper), "batch" (the released code), "group", or "frozen": BatchNorm
        everywhere, that of the encoder with its running statistics always. The rest of the network
        starts from random weights, for which there are no statistics to keep.
      padding, encoder_eps: the convention of the encoder's weights, see `EfficientNet`.
      drop_path_rate: stochastic depth of the encoder.
      depth_kernels, depth_strides, depth_padding, factorised: the encoder's ways along depth, see
        `EfficientNet`. Depth strides are 1 or 2; the decoder undoes those there are.
      stem_width: channels of the full-resolution block.
      widths: channels of the decoder's levels, coarsest first.
      dtype: compute dtype, e.g. "bfloat16"; parameters and logits are float32.
      ops: "auto", "lax", "fast" or "unfolded", see `ops.choose`.

    Reference: Messaoudi et al. 2023, Sect. 2.2.1 and Figure 6.
    """

    encoder_path: ClassVar[str] = "encoder"  # of its parameters

    out_channels: int = 3
    encoder: str = "efficientnet_b0"
    norm: str = "instance"
    padding: str = "same"
    encoder_eps: float = 1e-3
    drop_path_rate: float = 0.2
    depth_kernels: int | tuple[int, ...] | None = None
    depth_strides: int | tuple[int, ...] | None = None
    depth_padding: str = "zero"
    factorised: bool = False
    stem_width: int = 16
    widths: Sequence[int] = (256, 128, 64, 32, 16)
    dtype: Any = jnp.float32
    ops: str = "auto"

    def divisors(self, nd: int) -> tuple[int, ...]:
        """What the size along each of nd axes must be a multiple of."""
        depth = encoders.depth_reductions(self.encoder, self.depth_strides)[-1]
        return (depth, 32, 32) if nd == 3 else (32,) * nd

    def check_size(self, spatial: Sequence[int]) -> None:
        """Raises ValueError, with a size that fits, unless the network can take this one."""
        require_multiple(spatial, self.divisors(len(spatial)), "DX-Net")

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        self.check_size(image.shape[1:-1])
        dtype = jnp.dtype(self.dtype)
        shared = {"dtype": dtype, "ops_mode": self.ops}
        fresh_norm = "batch" if self.norm == "frozen" else self.norm
        full = ConvNormAct(self.stem_width, norm=fresh_norm, name="full", **shared)
        x = full(image.astype(dtype), train=train)
        encoder = encoders.build(
            self.encoder,
            norm=self.norm,
            padding=self.padding,
            eps=self.encoder_eps,
            drop_path_rate=self.drop_path_rate,
            depth_kernels=self.depth_kernels,
            depth_strides=self.depth_strides,
            depth_padding=self.depth_padding,
            factorised=self.factorised,
            name="encoder",
            **shared,
        )
        features = encoder(x, train=train)
        decoder = SkipDecoder(tuple(self.widths), norm=fresh_norm, name="decoder", **shared)
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
      ValueError: the variant, the encoder, the norm or a padding is unknown, or the depth options
        do not fit the encoder.
    """
    if variant not in VARIANTS:
        raise ValueError(f"DX-Net variant {variant!r} is unknown; known: {', '.join(VARIANTS)}")
    given = {k: v for k, v in kwargs.items() if v is not None}
    for name in ("depth_kernels", "depth_strides"):
        if not isinstance(given.get(name, 1), int):
            given[name] = tuple(given[name])  # a list could not be an attribute
    model = DXNet(**(VARIANTS[variant] | given))
    # Here rather than when it is traced: the message should come before any data is read.
    encoders.row(model.encoder)
    check_norm(model.norm)
    explicit_padding((), (), (), model.padding)
    choose(model.ops)
    jnp.dtype(model.dtype)
    encoders.build(
        model.encoder,
        depth_kernels=model.depth_kernels,
        depth_strides=model.depth_strides,
        depth_padding=model.depth_padding,
    ).depths()
    reductions = (1, *encoders.depth_reductions(model.encoder, model.depth_strides))
    if any(b // a > 2 for a, b in zip(reductions, reductions[1:], strict=False)):
        raise ValueError(
            f"depth_strides={model.depth_strides} reduce depth by {reductions[1:]} at the five "
            "features, but the decoder at most doubles between two of them"
        )
    return model
