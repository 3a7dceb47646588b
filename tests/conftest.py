"""Four CPU devices, strict rank promotion, quick compiling, and the optional real images."""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile

# Before jax is imported anywhere: four host devices, so that sharding is tested on any machine, and
# programs that are hardly optimised, as compiling takes longer than running. `make test-all` and
# `tests.ops.agreement.OPTIMISED` ask for what users run.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=0 "
    + os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4"
)

# One thread each for torch and NumPy: theirs wait by spinning, which costs the tests beside them.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Compiled programs are kept for what a worker and the programs it starts compile again, and end
# with the tests. A folder for each worker, as jax does not write its entries at once.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] += "/" + os.environ["PYTEST_XDIST_WORKER"]
else:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled = tempfile.mkdtemp(prefix="compiled-")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "true"
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_collection_finish():
    """What is imported by now stays: the garbage collector does not look at it again, and rarely at
    the rest, which tracing would else make it go through thousands of times."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def coarse_figures():
    """Figures are drawn with few dots, and their PDFs with the fonts every reader has: a subset of
    a font takes longer than the figure."""
    from crossdim_jax.report import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 50)
        patch.setitem(figures.STYLE, "pdf.use14corefonts", True)
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed source of random numbers."""
    return np.random.default_rng(0)


@pytest.fixture
def b0_length(request):
    """The length of EfficientNet-B0, "short" or "whole"; see `tests.models.b0`."""
    from tests.models import b0

    with b0.cut() if request.param == "short" else contextlib.nullcontext():
        yield request.param


@pytest.fixture
def shared_data() -> Path:
    """The folder with the real images; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real images not found at {SHARED}")
    return SHARED
