"""The classification head that a 2D weight file carries along: an encoder's features to logits.

No network of ours uses it. It is there to compare logits with the source's, and to export a whole
classifier.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax import ops
from crossdim_jax.errors import WeightsError
from crossdim_jax.models import efficientnet_table
from crossdim_jax.weights.paths import HEAD
from weight_port.rename import MODULE


def settings(architecture: str) -> dict[str, Any]:
    """The `act` and `group_size` of an architecture's head, for `logits`.

    Raises:
      KeyError: it is no EfficientNet.
    """
    net = efficientnet_table.network(efficientnet_table.VARIANTS[architecture])
    return {"act": net.activation, "group_size": net.norm_group}


def logits(
    arrays: Mapping[str, np.ndarray],
    feature: np.ndarray | jax.Array,
    *,
    eps: float,
    act: str | None = "silu",
    group_size: int = 8,
) -> jax.Array:
    """conv_head, bn2, activation, mean over all pixels, classifier; in evaluation mode.

    Args:
      arrays: path -> array as weight files hold them; those that are not of the head are ignored.
      feature: the encoder's last feature, (b, *spatial, c).
      eps: of the norm.
      act: the activation, a key of `ops.ACTIVATIONS`; `settings` knows it.
      group_size: channels per group, where the norm has no running statistics and so is GroupNorm;
        `settings` knows it.

    Returns:
      (b, classes).

    Raises:
      WeightsError: naming what is missing of the head.
    """
    prefix = f"{HEAD}/{MODULE}/"
    head = {p.removeprefix(prefix): jnp.asarray(a) for p, a in arrays.items() if prefix in p}
    needed = {"conv_head/kernel", "bn2/scale", "bn2/bias", "classifier/kernel", "classifier/bias"}
    if missing := sorted(needed - head.keys()):
        raise WeightsError(
            f"The weights hold no whole classification head: missing {', '.join(missing)}. Port 2D "
            "weights without --no-head."
        )
    kernel = head["conv_head/kernel"].reshape(head["conv_head/kernel"].shape[-2:])
    x = jnp.asarray(feature).reshape(feature.shape[0], -1, len(kernel)) @ kernel
    if "bn2/mean" in head:
        mean, variance = head["bn2/mean"][None, None], head["bn2/var"][None, None]
    else:
        grouped = x.reshape(*x.shape[:2], -1, group_size)
        mean, variance = (
            jnp.repeat(moment(grouped, (1, 3)), group_size, -1)[:, None]
            for moment in (jnp.mean, jnp.var)
        )
    x = (x - mean) * jax.lax.rsqrt(variance + eps)
    x = ops.ACTIVATIONS[act](x * head["bn2/scale"][None, None] + head["bn2/bias"][None, None])
    return x.mean(1) @ head["classifier/kernel"] + head["classifier/bias"][None]
