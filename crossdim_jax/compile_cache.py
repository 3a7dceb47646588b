"""Compiled programs kept on disk, from one process to the next."""

import hashlib
import os
import platform
from pathlib import Path

import jax


def cache_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the next start does not compile them again.

    In `$JAX_COMPILATION_CACHE_DIR`, or else in `$XDG_CACHE_HOME/crossdim_jax` (`~/.cache`), one
    folder for each kind of CPU, as programs are compiled for its instructions.
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if jax.config.jax_compilation_cache_dir is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "crossdim_jax" / f"compiled-{_cpu()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))


def _cpu() -> str:
    """A short name for this kind of CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    except OSError:
        kind = platform.machine() + platform.processor()
    return hashlib.sha256(kind.encode()).hexdigest()[:12]
