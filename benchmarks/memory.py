"""Peak memory of a training step, each framework in a process of its own.

`python -m benchmarks.memory SIDE SIZE DTYPE [VARIANT]` is one such process: it takes a few steps
and prints JSON.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossdim_jax.runtime import memory

STEPS = 3


def forget_peak() -> bool:
    """Starts the peak anew from the present size; whether the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _run_ours(size: int, dtype: str) -> dict[str, Any]:
    import jax

    from benchmarks import ours
    from benchmarks.timing import once

    memory.give_back_after_compiling()  # as launch.py does
    imports = memory.peak_mb()
    contestant = ours.contestant("training step", size, os.environ.get("BENCH_OPS", "auto"), dtype)
    ours.weights.cache_clear()
    memory.give_back()  # as training does before its first step
    start, forgotten = memory.peak_mb(), forget_peak()
    once(contestant, STEPS)
    steps = memory.peak_mb()
    found = {"imports_mb": imports, "start_mb": start, "steps_mb": steps if forgotten else None}
    statistics = jax.local_devices()[0].memory_stats() or {}
    if jax.default_backend() == "gpu" and "peak_bytes_in_use" in statistics:
        found["device_mb"] = statistics["peak_bytes_in_use"] / 1e6
    return found | {"peak_mb": max(start, steps)}


def _run_theirs(size: int, dtype: str, variant: dict[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks import machine, theirs
    from benchmarks.timing import once

    torch.set_num_threads(machine.cores())
    imports = memory.peak_mb()
    made = theirs.Peer(size, theirs.Variant(**variant), None, dtype)
    contestant = made.training_step()
    if made.variant.compiled:
        once(contestant)
    start, forgotten = memory.peak_mb(), forget_peak()
    once(contestant, STEPS)
    steps = memory.peak_mb()
    found = {"imports_mb": imports, "start_mb": start, "steps_mb": steps if forgotten else None}
    if torch.cuda.is_available():
        found["device_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found | {"peak_mb": max(start, steps)}


def _child(arguments: list[str], environment: dict[str, str], limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.memory", *arguments]
    try:
        done = subprocess.run(
            command,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            cwd=Path(__file__).resolve().parents[1],
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {limit_s:g} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:200]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(
    size: int, dtype: str, mode: str, variants: list[Any], limit_s: float = 600.0
) -> Iterator[dict[str, Any]]:
    """Rows as they are measured: ours while it compiles and from the cache, variants of the peer.

    Args:
      size: of the cube.
      dtype: "float32" or "bfloat16".
      mode: our ops mode.
      variants: `theirs.Variant`s.
      limit_s: for each process.

    Yields:
      rows of `imports_mb` (peak after the imports), `start_mb` (peak before the steps measured:
      compiling, the state), `steps_mb` (peak within the steps), `peak_mb` (of the whole process),
      on a GPU `device_mb` (the framework's own counter), or `failed`.
    """
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            "BENCH_OPS": mode,
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        for name in ("ours, compiling", "ours, second start (compilation cache)"):
            row = _child(["ours", str(size), dtype], environment, limit_s)
            yield {"side": "ours", "name": name, "dtype": dtype} | row
    for variant in variants:
        described = json.dumps(dataclasses.asdict(variant))
        row = _child(["theirs", str(size), dtype, described], {}, limit_s)
        yield {"side": "theirs", "name": str(variant), "dtype": dtype} | row


def main(argv: list[str]) -> None:
    """One process: `SIDE SIZE DTYPE [VARIANT as JSON]`."""
    side, size, dtype, *rest = argv
    if side == "ours":
        found = _run_ours(int(size), dtype)
    else:
        found = _run_theirs(int(size), dtype, json.loads(rest[0]))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
