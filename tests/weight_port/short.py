"""The EfficientNets cut short, ours and timm's alike: a block a stage, two in the second."""

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Iterator

import pytest

from crossdim_jax.models import efficientnet_table
from crossdim_jax.weights import recipe
from tests.weight_port import conftest
from weight_port import forward

_scaled = efficientnet_table.scaled
_random_timm = functools.cache(conftest.random_timm.__wrapped__)  # apart from the whole networks


def _repeats(stage: int) -> int:
    return 2 if stage == 1 else 1  # the second block is residual


def _short(variant: str) -> tuple[int, tuple[efficientnet_table.Stage, ...]]:
    stem, stages = _scaled(variant)
    repeats = [min(stage.repeats, _repeats(s)) for s, stage in enumerate(stages)]
    pairs = zip(stages, repeats, strict=True)
    return stem, tuple(dataclasses.replace(stage, repeats=n) for stage, n in pairs)


@contextlib.contextmanager
def cut() -> Iterator[None]:
    """Makes every EfficientNet that short meanwhile: B0 has eight blocks instead of sixteen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet_table, "scaled", _short)
        patch.setattr(conftest, "random_timm", _random_timm)
        if importlib.util.find_spec("timm"):
            from timm.models import efficientnet as timm_efficientnet

            decode = timm_efficientnet.decode_arch_def

            def short(*args, **options):
                stages = decode(*args, **options)
                return [blocks[: _repeats(s)] for s, blocks in enumerate(stages)]

            patch.setattr(timm_efficientnet, "decode_arch_def", short)
        _forget()
        yield
    _forget()


def _forget() -> None:
    """What was made of the tables is made anew."""
    for function in (efficientnet_table.network, recipe.target_shapes, forward._network):
        function.cache_clear()
