"""Classification heads of weight files."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from crossdim_jax.errors import WeightsError
from crossdim_jax.weights.paths import ENCODER, HEAD


def tensors(
    arrays: Mapping[str, np.ndarray], *needed: str, under: str = ""
) -> dict[str, jax.Array]:
    """The head's tensors by their paths inside it.

    Args:
      arrays: path -> array as weight files hold them; those that are not of the head are ignored.
      *needed: paths that must be there.
      under: the module that these lie in, such as "head/".

    Raises:
      WeightsError: naming what is missing.
    """
    prefix = f"{HEAD}/{ENCODER}/{under}"
    head = {
        path.removeprefix(prefix): jnp.asarray(array)
        for path, array in arrays.items()
        if path.startswith(prefix)
    }
    if missing := sorted(set(needed) - head.keys()):
        raise WeightsError(
            f"The weights hold no whole classification head: missing {', '.join(missing)}. Port 2D "
            "weights without --no-head."
        )
    return head
