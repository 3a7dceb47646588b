"""DS-Net: a pre-trained 2D network inside a 3D one."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from crossdim_jax.errors import lookup
from crossdim_jax.models import omnianet
from crossdim_jax.models.conv import Conv, Depth, DepthUpConv
from crossdim_jax.models.decoder import SkipDecoder
from crossdim_jax.models.encoders import EncoderSpec, split_spec
from crossdim_jax.models.layers import (
    ConvNormAct,
    fold_slices,
    require_multiple,
    unfold_slices,
)

SLICES = 3  # what the depth ends at: the channels of a photograph
IMAGES = 4  # three-channel images that a volume becomes
WIDTHS = (16, 32, 48, 96)  # channels at each depth, as it was and after 3, 2 and 2
STRIDES = (3, 2, 2, 4)  # along depth
# (window, stride, padding) along depth of the released code's transposed convolutions, from 3
# slices to 11, 22, 43 and 128.
TRANSPOSED = ((5, 3, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1))
DEPTHS = {"nearest": range(97, 145), "transposed": range(128, 129)}


class DSNet(nn.Module):
    """DS-Net, `(b, depth, h, w, modalities) -> logits (b, depth, h, w, out_channels)`, no sigmoid.

    Strided 3D convolutions take the depth to 3 and the channels to 4; each channel is then an image
    of three channels, so that a 2D network with an untouched three-channel stem sees 4 b of them.
    What it gives goes back to `(b, 3, h, w, 4)` and through a 3D decoder that upsamples depth only.
    `build` fills the attributes from a variant.

    Attributes:
      out_channels: logits per voxel; 3 for the regions WT, TC, ET.
      encoder: of the 2D network, see `OmniaNet`. The 3D parts have InstanceNorm.
      upsample: "nearest": pixels and slices are repeated, and a level of the 3D decoder has two
        convolutions; "transposed": transposed convolutions in the plane and along depth, and one.
      activation: of the 2D network's decoder.
      affine: whether the 3D parts' norms have scale and bias. The paper does not say; its DX-Net,
        of the same blocks, has them.
      dtype, ops: see `DXNet`.

    Reference: Messaoudi et al. 2023, Sect. 2.1.2 and Figure 4.
    """

    encoder_path: ClassVar[str] = "net2d/encoder"  # of its parameters

    out_channels: int = 3
    encoder: EncoderSpec = EncoderSpec()
    upsample: str = "nearest"
    activation: str = "relu"
    affine: bool = True
    dtype: Any = jnp.float32
    ops: str = "auto"

    def check_size(self, spatial: tuple[int, ...]) -> None:
        """Raises ValueError, saying what fits, unless the network can take a volume so large."""
        allowed = DEPTHS[self.upsample]
        if len(spatial) != 3:
            raise ValueError(f"DS-Net takes volumes (depth, height, width), found {tuple(spatial)}")
        if spatial[0] not in allowed:
            fits = f"{allowed[0]} to {allowed[-1]}" if len(allowed) > 1 else str(allowed[0])
            raise ValueError(
                f"DS-Net brings the depth to exactly {SLICES} slices, so it must be {fits}, found "
                f"{spatial[0]} of {tuple(spatial)}"
            )
        plane = self.encoder.feature_info()[-1].reduction
        require_multiple(spatial[1:], (plane, plane), "DS-Net, in the plane,")

    @nn.compact
    def __call__(self, image: jax.Array, *, train: bool = False) -> jax.Array:
        self.check_size(image.shape[1:-1])
        dtype = jnp.dtype(self.dtype)
        shared = {"dtype": dtype, "ops_mode": self.ops}
        norm = {"norm": "instance", "activation": "silu", "affine": self.affine}

        def conv(name, width, stride, x):
            return ConvNormAct(
                width,
                padding="symmetric",
                depth=Depth(stride=stride),
                name=name,
                **norm,
                **shared,
            )(x, train=train)

        x = conv("down_0", WIDTHS[0], 1, image.astype(dtype))
        skips = [x]
        for level, (width, stride) in enumerate(
            zip((*WIDTHS[1:], IMAGES), STRIDES, strict=True), 1
        ):
            if level > 1:
                x = conv(f"down_{level}_0", width, 1, x)
            x = conv(f"down_{level}", width, stride, x)
            skips.append(x)
        net2d = omnianet.OmniaNet(
            SLICES,
            self.encoder,
            stem_width=0,
            upsample=self.upsample,
            activation=self.activation,
            dtype=self.dtype,
            ops=self.ops,
            name="net2d",
        )
        images = net2d(fold_slices(skips.pop()), train=train)
        x = unfold_slices(images, image.shape[0]).astype(dtype)
        if self.upsample == "nearest":
            decoder = SkipDecoder(
                WIDTHS[::-1], upsample="nearest", name="decoder", **norm, **shared
            )
            x = decoder([*skips, x], train=train)
        else:
            for level, (shape, width) in enumerate(zip(TRANSPOSED, WIDTHS[::-1], strict=True)):
                x = DepthUpConv(*shape, dtype=dtype, name=f"up_{level}")(x)
                x = jnp.concatenate([x, skips.pop()], -1)
                x = conv(f"conv_{level}", width, 1, x)
        logits = Conv(self.out_channels, use_bias=True, name="head", **shared)(x)
        return logits.astype(jnp.float32)


VARIANTS = {
    # The paper: repeated pixels and slices. Noisy-student weights are TensorFlow-trained, hence
    # SAME padding and eps 1e-3. It does not state stochastic depth: timm's default.
    "paper": {
        "upsample": "nearest",
        "activation": "relu",
        "affine": True,
        "padding": "same",
        "encoder_eps": 1e-3,
        "drop_path_rate": 0.2,
    },
    # The authors' code, 7,668,118 parameters: transposed convolutions, and PyTorch padding and eps
    # even with TensorFlow weights. Theirs takes one volume at a time, this one any number.
    "released": {
        "upsample": "transposed",
        "activation": "silu",
        "affine": False,
        "padding": "symmetric",
        "encoder_eps": 1e-5,
        "drop_path_rate": 0.4,
    },
}


def build(*, variant: str = "paper", **kwargs: Any) -> DSNet:
    """A DS-Net as a variant says, with any attribute overridden; None means the variant's value.

    Raises:
      ValueError: the variant, the encoder, the norm, a padding, the upsampling or the activation is
        unknown.
    """
    given = {k: v for k, v in kwargs.items() if v is not None}
    spec, own = split_spec(lookup("variant", variant, VARIANTS) | given)
    model = DSNet(encoder=spec, **own)
    omnianet.check(model)
    return model
