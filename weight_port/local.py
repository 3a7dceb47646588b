"""The pre-trained weights that are on this machine: in packages and in timm's cache."""

import os
from pathlib import Path

from weight_port.families import FAMILIES
from weight_port.packages import Package

REPOSITORY = "models--timm--"  # how the hub's cache calls a repository of timm's
PACKAGE, CACHE, DOWNLOAD = "package", "cache", "download"


def here() -> dict[str, str]:
    """timm's name of all weights on this machine -> `PACKAGE` or `CACHE`. No network is asked."""
    found = dict.fromkeys(_cached(), CACHE)
    return found | {row.name: PACKAGE for row in packages() if row.file()}


def packages() -> tuple[Package, ...]:
    """All packages that are known, installed or not."""
    return tuple(row for f in FAMILIES.values() for row in getattr(f, "PACKAGES", ()))


def package(name: str) -> Package | None:
    """The installed package with these weights; a name without tag means its only one."""
    named = (row for row in packages() if name in (row.name, row.name.partition(".")[0]))
    return next((row for row in named if row.file()), None)


def _cached() -> list[str]:
    """Names of the weights in the hub's cache, where timm's downloads go."""
    repositories = sorted(_cache().glob(f"{REPOSITORY}*"))
    return [
        path.name.removeprefix(REPOSITORY)
        for path in repositories
        if any(path.glob("snapshots/*/*.safetensors")) or any(path.glob("snapshots/*/*.bin"))
    ]


def _cache() -> Path:
    """Folder of the hub's cache, by the hub's own rules."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{home}/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
