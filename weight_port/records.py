"""Records of weight files: when and with what they were written, and what an old one may lack."""

import datetime
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any

import crossdim_jax
from crossdim_jax.errors import WeightsError

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


def required(record: Mapping[str, Any], fields: Sequence[str], name: str) -> None:
    """Raises WeightsError unless the record has all of these fields.

    Args:
      record: the metadata of a weight file.
      fields: that what follows reads.
      name: of the file, for the message.
    """
    if missing := [field for field in fields if record.get(field) is None]:
        raise WeightsError(
            f"{name}: its record has no {', '.join(missing)}; it is of an older version. Port it "
            f"again: python -m weight_port {record.get('id') or 'NAME'}"
        )
