"""Machine that the numbers were measured on, and how much of it others were using meanwhile.

Imports neither jax nor torch: it is asked before them, as OpenMP reads its settings once.
"""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

QUIET = 0.05  # of the cores may be in use by others before a comparison is called noisy


def cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _busy_s() -> float | None:
    """Seconds that our cores have been in use since boot; None where there is no Linux /proc."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    mine = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    total = 0
    for line in lines:
        name, *ticks = line.split()
        if name in mine:
            user, nice, system, _, _, *rest = map(int, ticks[:8])
            total += user + nice + system + sum(rest)
    return total / os.sysconf("SC_CLK_TCK")


class Others:
    """The share of our cores that other processes used since this was made."""

    def __init__(self):
        self.wall, self.own, self.busy = time.perf_counter(), time.process_time(), _busy_s()

    def share(self) -> float | None:
        """0 for a quiet machine, 1 for one that is all others'; None if unknown."""
        busy, wall = _busy_s(), time.perf_counter() - self.wall
        if busy is None or self.busy is None or wall <= 0:
            return None
        others = busy - self.busy - (time.process_time() - self.own)
        return min(max(others / (wall * cores()), 0.0), 1.0)


def settle_openmp() -> str:
    """Has, on a machine that is not quiet, torch's threads sleep rather than spin while they wait.

    Spinning threads that lose their core hold up small operations for whole time slices, 50 ms
    instead of 1 ms: that would be measured as PyTorch's. To be called before torch is imported; a
    policy set from outside is kept. Returns a line for the report.
    """
    given = [k for k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if k in os.environ]
    if given:
        return ", ".join(f"{k}={os.environ[k]} (given)" for k in given)
    others = Others()
    time.sleep(1.0)
    share = others.share()
    if share is None or share <= QUIET:
        return "default (the machine was quiet at the start)"
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    return f"OMP_WAIT_POLICY=PASSIVE (others used {share:.0%} of the cores at the start)"


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def describe() -> dict[str, str | int]:
    """Processor, cores, versions and flags, without importing what they belong to."""
    found: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": cores(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for package in ("jax", "jaxlib", "flax", "optax", "torch", "monai"):
        found[package] = _version(package)
    for flag in ("XLA_FLAGS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        found[flag] = os.environ.get(flag, "")
    return found
