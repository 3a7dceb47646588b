"""Controls: 2D weights from which what was learned is taken away, and what else helps is left.

A network that trains better from its 2D weights may owe that to the scale of its first responses.
Weights by a control have that scale and nothing else; they are adapted and inflated like others.

Only values change, of a 2D file's tensors. What is drawn hangs on the seed and the tensor's path,
and not on the order of the tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from crossdim_jax.errors import lookup
from crossdim_jax.models import encoders, initial
from crossdim_jax.weights.paths import ENCODER, flatten

Arrays = Mapping[str, np.ndarray]


def shuffled(arrays: Arrays, architecture: str, seed: int) -> dict[str, np.ndarray]:
    """Permutes the numbers of each filter, i.e. of a kernel's part for one output channel.

    A filter keeps its mean and its variance, so that the norm that follows still fits it. Biases,
    norms and their statistics stay. A depthwise filter has its k x k numbers only.
    """
    del architecture

    def permuted(path: str, kernel: np.ndarray) -> np.ndarray:
        filters = kernel.reshape(*kernel.shape[:-4], -1, kernel.shape[-1])
        rng = initial.generator(seed, f"shuffled:{path}")
        return rng.permuted(filters, axis=-2).reshape(kernel.shape)

    kernels = {path: permuted(path, arrays[path]) for path in arrays if _is_kernel(path)}
    return dict(arrays) | kernels


def random(arrays: Arrays, architecture: str, seed: int) -> dict[str, np.ndarray]:
    """Draws every kernel from N(0, 2 / fan_out), and starts all else as without weights.

    fan_out counts taps and the output channels of a group, as timm initialises EfficientNet. Norms
    have scale 1, bias 0 and statistics 0 and 1.
    """
    fresh = _without_weights(architecture, seed)
    grouped = {f"params/{ENCODER}/{path}" for path in encoders.grouped_kernels(architecture)}

    def drawn(path: str, array: np.ndarray) -> np.ndarray:
        if not _is_kernel(path):
            return fresh.get(path, array)
        k1, k2, c_in, c_out = array.shape[-4:]
        fan_out = k1 * k2 * (c_in if path in grouped else c_out)  # groups have as many out as in
        rng = initial.generator(seed, f"random:{path}")
        values = rng.standard_normal(array.shape, np.float32)
        return values * np.float32(np.sqrt(2 / fan_out))

    return {path: drawn(path, array) for path, array in arrays.items()}


class Control(NamedTuple):
    """Control: its name in words, and how it is made, `(arrays, architecture, seed) -> arrays`."""

    make: Callable[[Arrays, str, int], dict[str, np.ndarray]]
    says: str


CONTROLS = {
    "shuffled": Control(shuffled, "shuffled kernels"),
    "random": Control(random, "random numbers"),
}


def apply(control: str, arrays: Arrays, architecture: str, seed: int) -> dict[str, np.ndarray]:
    """A 2D encoder's tensors by a control.

    Args:
      control: a key of `CONTROLS`.
      arrays: path -> array, as a 2D weight file holds them.
      architecture: a key of `encoders.ENCODERS`.
      seed: of what is drawn.
    """
    return lookup("control", control, CONTROLS).make(arrays, architecture, seed)


def text(record: Mapping[str, Any]) -> str:
    """Words for a record, of any origin, of weights by a control; "" if they are by none."""
    kind = record.get("control")
    if not kind:
        return ""
    return f"control: {CONTROLS[kind].says if kind in [*CONTROLS] else kind}"


def _is_kernel(path: str) -> bool:
    return path.startswith("params/") and path.endswith("/kernel")


def _without_weights(architecture: str, seed: int) -> dict[str, np.ndarray]:
    """Path -> initial value of the 2D encoder's tensors, with running statistics if it can."""
    encoder = encoders.build(architecture, norm=encoders.norm(architecture))
    image = (1, 32, 32, 3)  # its channels reach the first kernel alone, which is drawn anew
    flat = flatten(initial.variables(encoder, seed, image))
    paths = {path: path.replace("/", f"/{ENCODER}/", 1) for path in flat}
    return {paths[path]: np.asarray(leaf) for path, leaf in flat.items()}
