"""Challenges: what differs from one to the next: files, label values, metrics, submission.

A challenge is one class in one file. It says where its cases are (`scan`), reads and checks one
(`load`), brings it to what a network sees and back (`prepare`, `finish`), translates label values
into what a network predicts and into what is scored (`encode`, `masks`), names its metrics
(`profile`), makes tables of its own (`tables`) and writes a result as its users expect it (`write`,
`export`). To add one, write the file and name it in `CHALLENGES`.
"""

import importlib
import inspect
from collections.abc import Mapping

from crossdim_jax.challenges.base import Challenge
from crossdim_jax.errors import ConfigError, lookup

# name -> module, class. Imported on demand: one challenge must not need another's libraries.
CHALLENGES = {
    "brats": ("crossdim_jax.challenges.brats.challenge", "BraTS"),
    "camus": ("crossdim_jax.challenges.camus.challenge", "Camus"),
    "chaos": ("crossdim_jax.challenges.chaos.challenge", "Chaos"),
    "dataset": ("crossdim_jax.challenges.dataset.challenge", "Dataset"),
    "dataset_phantom": ("crossdim_jax.challenges.dataset.phantom", "Phantom"),
    "phantom": ("crossdim_jax.challenges.brats.phantom", "Phantom"),
}


def find(name: str) -> type[Challenge]:
    """Class of a challenge by its name. Raises ConfigError listing the known ones."""
    module, attribute = lookup("challenge", name, CHALLENGES)
    return getattr(importlib.import_module(module), attribute)


def get(name: str, **kwargs: object) -> Challenge:
    """Builds the challenge of that name.

    Args:
      name: a key of `CHALLENGES`.
      **kwargs: the arguments of its class.

    Raises:
      ConfigError: unknown name or argument; the known ones are listed.
    """
    kind = find(name)
    known = inspect.signature(kind).parameters
    if unknown := sorted(set(kwargs) - set(known)):
        raise ConfigError(
            f"challenge {name!r} has no setting {', '.join(unknown)}; known: {', '.join(known)}"
        )
    result = kind(**kwargs)
    result.settings = {"name": name, **{k: p.default for k, p in known.items()}, **kwargs}
    return result


def of_record(record: Mapping[str, object]) -> Challenge:
    """The challenge that a `Challenge.record` is of. Raises ConfigError as `get`."""
    settings = dict(record)
    tolerance = settings.pop("grid_tolerance_mm", None)
    result = get(settings.pop("name", None), **settings)
    result.grid_tolerance_mm = tolerance
    return result
