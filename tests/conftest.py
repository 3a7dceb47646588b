"""Four CPU devices, strict rank promotion, no compilation cache, and the optional real images."""

import os

# Before jax is imported anywhere: four host devices, so that sharding is tested on any machine.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()

# Programs that tests start leave nothing in the user's cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed source of random numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real images; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images not found at {SHARED}")
    return SHARED
