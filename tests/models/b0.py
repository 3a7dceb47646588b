"""EfficientNet-B0 cut to one block of every kind, in our networks and in their twins."""

import contextlib
import dataclasses
import importlib.util
from collections.abc import Iterator

import pytest

from crossdim_jax.models import efficientnet_table

# (window, stride, expansion, channels, repeats), as in `benchmarks.peer_blocks`.
STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (3, 2, 6, 40, 1), (3, 2, 6, 48, 1), (5, 2, 6, 56, 1))

# `make test-all` runs "whole" too.
SHORT_AND_WHOLE = pytest.mark.parametrize(
    "b0_length", ["short", pytest.param("whole", marks=pytest.mark.slow)], indirect=True
)


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """Makes "b0" and "b0_g8_gn" six blocks instead of sixteen meanwhile, a third to compile."""
    kinds = ("separable", *["inverted"] * 4)
    stages = tuple(
        efficientnet_table.Stage(kind, *row) for kind, row in zip(kinds, STAGES, strict=True)
    )
    with pytest.MonkeyPatch.context() as patch:
        rows = efficientnet_table.ROWS
        for name in ("b0", "b0_g8_gn"):
            patch.setitem(rows, name, dataclasses.replace(rows[name], stages=stages))
        if importlib.util.find_spec("torch"):
            from benchmarks import peer_blocks

            patch.setattr(peer_blocks, "STAGES", STAGES)
            patch.setattr(peer_blocks, "FEATURE_STAGES", (1, 2, 3, 4))
        efficientnet_table.network.cache_clear()
        yield
    efficientnet_table.network.cache_clear()
