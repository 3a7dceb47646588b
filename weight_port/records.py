"""Records of weight files: when and with what they were written."""

import datetime
import importlib.metadata
import re
from typing import Any

import crossdim_jax

PACKAGES = ("jax", "flax", "numpy", "torch", "timm")


def stamp() -> dict[str, Any]:
    """The date, and the versions of what takes part; None where a package is not installed."""
    versions: dict[str, str | None] = {"crossdim_jax": crossdim_jax.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"versions": versions, "date": now}


def without_folders(text: str) -> str:
    """A message without the folders of the paths in it: records are passed on to others."""
    return re.sub(r"(?<![\w.:/~])[~.]{0,2}/(?:[^\s/'\":]+/)*(?=[^\s/'\":])", "", text)
