"""Compiled programs kept on disk, from one process to the next."""

import contextlib
import hashlib
import os
import platform
import re
import zlib
from pathlib import Path

import jax

# A process that is killed can leave its last program torn: so many of the newest are looked at.
NEWEST = 4
ENTRY = re.compile(r".+-[0-9a-f]{64}-cache")  # as jax calls them


def cache_compiled_programs() -> None:
    """Keeps compiled programs on disk, so that the next start does not compile them again.

    In `$JAX_COMPILATION_CACHE_DIR`, or else in `$XDG_CACHE_HOME/crossdim_jax` (`~/.cache`), one
    folder for each kind of CPU, as programs are compiled for its instructions.
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.

    jax would neither use nor replace a program that was torn when its process was killed, and warn
    of it at every start: such ones are removed.
    """
    if jax.config.jax_compilation_cache_dir is None:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "crossdim_jax" / f"compiled-{_cpu()}"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if folder := jax.config.jax_compilation_cache_dir:
        with contextlib.suppress(OSError):
            _remove_torn(Path(folder))


def _cpu() -> str:
    """A short name for this kind of CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        kind = "".join(sorted({x for x in lines if x.startswith(("flags", "Features"))}))
    except OSError:
        kind = platform.machine() + platform.processor()
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


def _remove_torn(folder: Path) -> None:
    entries = [path for path in folder.glob("*-cache") if ENTRY.fullmatch(path.name)]
    entries.sort(key=lambda path: path.stat().st_mtime)
    for path in entries[-NEWEST:]:
        if not _is_whole(path.read_bytes()):
            path.unlink(missing_ok=True)


def _is_whole(compressed: bytes) -> bool:
    """True if a stream has its end, or is of an unknown kind."""
    if len(compressed) < 4:
        return False
    if compressed[:1] == b"\x78" and int.from_bytes(compressed[:2], "big") % 31 == 0:
        decompressor = zlib.decompressobj()
    elif compressed[:4] == b"\x28\xb5\x2f\xfd" and (zstd := _zstd()) is not None:
        decompressor = zstd()
    else:
        return True
    try:
        decompressor.decompress(compressed)
    except Exception:  # each library has its own
        return False
    return decompressor.eof


def _zstd():
    """A maker of decompressors from the library that jax would use; None if there is none."""
    try:
        from compression.zstd import ZstdDecompressor

        return ZstdDecompressor
    except ImportError:
        pass
    try:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj
    except ImportError:
        return None
