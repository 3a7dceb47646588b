"""Two small EfficientNets from the real code: a few blocks, compiled in a second."""

import contextlib
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crossdim_jax.models import efficientnet, efficientnet_table, encoders
from crossdim_jax.models.efficientnet_table import Row, Stage
from crossdim_jax.weights.paths import flatten
from weight_port import families
from weight_port.source import Name, Source

STAGES = (
    Stage("separable", 3, 1, 1, 16, 1),  # residual
    Stage("inverted", 3, 2, 2, 16, 1),
    Stage("inverted", 5, 2, 2, 16, 1),
    Stage("inverted", 3, 2, 2, 16, 1),
    Stage("inverted", 5, 2, 2, 24, 1),
)
ROWS = {
    "tiny": Row(STAGES, 64, stem=16),
    # Without squeeze-and-excitation nothing looks at the whole volume.
    "tiny_plain": Row(efficientnet_table._without_gates(STAGES), 64, stem=16),
}


@contextlib.contextmanager
def registered() -> Iterator[None]:
    """The encoders `efficientnet_tiny` and `efficientnet_tiny_plain` exist meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        for variant, row in ROWS.items():
            patch.setitem(efficientnet_table.ROWS, variant, row)
            patch.setitem(efficientnet_table.VARIANTS, f"efficientnet_{variant}", variant)
            patch.setitem(
                encoders.ENCODERS, f"efficientnet_{variant}", efficientnet.encoder(variant)
            )
        yield


@functools.cache
def source(architecture: str = "efficientnet_tiny", *, padding: str = "same") -> Source:
    """Random weights and statistics of an encoder under timm's names, as from a checkpoint."""
    rng = np.random.default_rng(1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    encoder = encoders.build(architecture, norm=encoders.norm(architecture))
    tree, family = jax.eval_shape(encoder.init, jax.random.key(0), image), families.of(architecture)
    arrays = {}
    for path, leaf in flatten({c: {"encoder": t} for c, t in tree.items()}).items():
        kind = path.rpartition("/")[2]
        if kind == "kernel":
            value = rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape)
        elif kind in ("scale", "var"):
            value = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            value = rng.normal(0, 0.2, leaf.shape)
        value = family.to_torch_layout(value.astype(np.float32), path)
        arrays[family.torch_name(path)] = np.ascontiguousarray(value)
    eps = 1e-3 if padding == "same" else 1e-5
    name = Name(architecture, architecture, architecture, padding, eps)
    origin = {"source": "file", "id": architecture, "url": None, "file": "tiny.safetensors"}
    return Source(name, arrays, origin | {"sha256": "0" * 64, "licence": "unknown"})
