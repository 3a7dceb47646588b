"""Initial parameters: how they are distributed, and how all of a network are drawn at once.

A program that draws every parameter takes XLA minutes to compile, and one for each shape of
parameter half a minute in every process. Here the network is only traced, and the host draws: each
array from the seed and its own path, whatever the backend, the other parameters and the processes.
"""

import contextvars
import dataclasses
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

# While a network is traced: the initialiser of each placeholder, by the placeholder's identity.
_PLACEHOLDERS: contextvars.ContextVar[dict | None] = contextvars.ContextVar("_", default=None)


@dataclasses.dataclass(frozen=True)
class Initialiser:
    """Initialiser of a parameter, as Flax calls it: `(key, shape, dtype) -> array`.

    Attributes:
      constant: the value of all of them, where scale is 0.
      scale: they are normal with mean 0, and their variance is `scale / fan_in`, fan_in counting
        the kernel's taps and input channels.
      leading: axes before the taps, which are not part of the fan-in.
    """

    constant: float = 0.0
    scale: float = 0.0
    leading: int = 0

    def __call__(self, key: Any, shape: Sequence[int], dtype: Any = jnp.float32) -> Any:
        placeholders = _PLACEHOLDERS.get()
        if placeholders is not None:
            placeholder = jnp.zeros(shape, dtype)  # traced: takes no memory
            placeholders[id(placeholder)] = (placeholder, self)
            return placeholder
        if not self.scale:
            return jnp.full(shape, self.constant, dtype)
        values = jax.random.normal(key, shape, dtype)
        return values * jnp.asarray(self._deviation(shape), dtype)

    def draw(self, rng: np.random.Generator, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array of the distribution, made on the host."""
        if not self.scale:
            return np.full(shape, self.constant, dtype)
        values = rng.standard_normal(shape, np.float32)
        values *= np.float32(self._deviation(shape))
        return values.astype(dtype, copy=False)

    def _deviation(self, shape: Sequence[int]) -> float:
        return math.sqrt(self.scale / math.prod(shape[self.leading : -1]))


zeros, ones = Initialiser(0.0), Initialiser(1.0)


def generator(seed: int, name: str) -> np.random.Generator:
    """Generator of the numbers of one array; they hang on the seed and the array's name alone."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16])
    return np.random.Generator(np.random.Philox(key=key))


def scaled_normal(scale: float, *, leading: int = 0) -> Initialiser:
    """Normal initialiser of mean 0, see `Initialiser`."""
    return Initialiser(0.0, scale, leading)


def variables(model: nn.Module, seed: int, shape: Sequence[int]) -> dict[str, Any]:
    """Initial variables of a network, without computing its output.

    Args:
      model: a network. One that has other initialisers than this module's is initialised by Flax.
      seed: of the parameters.
      shape: `(b, *spatial, c)` of an input; only its rank and channels matter.

    Returns:
      `{"params": ..., "batch_stats": ...}` of arrays, as `model.init` names them.
    """
    image = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
    # Parameters do not depend on how convolutions are computed: the plain way is traced fastest.
    plain = model.clone(ops="lax") if hasattr(model, "ops") else model
    found: dict[tuple[str, ...], Any] = {}
    placeholders: dict[int, tuple[jax.Array, Initialiser]] = {}

    def trace(key, image):
        found.update(traverse_util.flatten_dict(plain.init(key, image)))

    token = _PLACEHOLDERS.set(placeholders)
    try:
        jax.eval_shape(trace, jax.random.key(0), image)
    finally:
        _PLACEHOLDERS.reset(token)
    if not all(id(leaf) in placeholders for leaf in found.values()):
        return model.lazy_init({"params": jax.random.key(seed)}, image)
    drawn = {}
    for path, leaf in found.items():
        rng, initialiser = generator(seed, "/".join(path)), placeholders[id(leaf)][1]
        drawn[path] = jnp.asarray(initialiser.draw(rng, leaf.shape, leaf.dtype))
    return traverse_util.unflatten_dict(drawn)
