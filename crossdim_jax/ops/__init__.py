"""Fast formulations of the operations these networks are made of.

The only room that knows about backends: a network says which operation it wants, `choose` says how
it is computed. Every fast form has the plain `lax` form beside it and agrees with it in value and
gradient.
"""

from crossdim_jax.ops.channelwise import add_bias, scale_channels
from crossdim_jax.ops.conv import (
    MODES,
    PADDINGS,
    channel_multiple,
    choose,
    conv,
    conv_aligned,
    conv_lax,
    depthwise_conv,
    explicit_padding,
    upsample_conv,
    upsample_conv_lax,
)
from crossdim_jax.ops.fold import up_concat_conv, up_concat_conv_reference
from crossdim_jax.ops.grouped import grouped_conv
from crossdim_jax.ops.nearest import (
    nearest,
    nearest_concat_conv,
    nearest_concat_conv_reference,
)
from crossdim_jax.ops.norm import (
    ACTIVATIONS,
    batch_norm,
    batch_norm_reference,
    instance_norm,
    instance_norm_reference,
)
from crossdim_jax.ops.pooling import avg_pool, max_pool, max_pool_lax

__all__ = [
    "ACTIVATIONS",
    "MODES",
    "PADDINGS",
    "add_bias",
    "avg_pool",
    "batch_norm",
    "batch_norm_reference",
    "channel_multiple",
    "choose",
    "conv",
    "conv_aligned",
    "conv_lax",
    "depthwise_conv",
    "explicit_padding",
    "grouped_conv",
    "instance_norm",
    "instance_norm_reference",
    "max_pool",
    "max_pool_lax",
    "nearest",
    "nearest_concat_conv",
    "nearest_concat_conv_reference",
    "scale_channels",
    "up_concat_conv",
    "up_concat_conv_reference",
    "upsample_conv",
    "upsample_conv_lax",
]
