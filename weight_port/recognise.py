"""A network recognised in a file by the names of its tensors, and renamed to timm's.

A family lists the schemes of its networks as `SCHEMES`. Whatever a file's scheme, its tensors leave
here under timm's names and in PyTorch's layout.
"""

import re
from collections.abc import Container, Iterator, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np

from crossdim_jax.errors import WeightsError, check_name
from weight_port import families, rename
from weight_port.formats.checkpoint import is_ema
from weight_port.formats.scheme import Scheme, numbered
from weight_port.names import Name


class Place(NamedTuple):
    """A network in a file: its scheme, its names there, and what all of these begin with."""

    scheme: Scheme
    names: Mapping[str, str]
    prefix: str
    hits: int

    def __str__(self) -> str:
        """In words: "torchvision's names, under 'encoder.'"."""
        under = f", under {self.prefix!r}" if self.prefix else ""
        return f"{self.scheme.says}{under}"


class Renamed(NamedTuple):
    """A file's network under timm's names.

    Attributes:
      place: where and how it was found.
      arrays: timm's name -> array in PyTorch's layout; names that are not known stay.
      others: names of the file that are not the network's.
    """

    place: Place
    arrays: dict[str, np.ndarray]
    others: tuple[str, ...]


def known(architecture: str) -> dict[str, Scheme]:
    """Schemes of an architecture's family by name."""
    return {scheme.name: scheme for scheme in families.of(architecture).SCHEMES}


def all_names() -> tuple[str, ...]:
    """Names of the schemes of all families."""
    found = (scheme.name for family in families.FAMILIES.values() for scheme in family.SCHEMES)
    return tuple(dict.fromkeys(found))


# --------------------------------------------------------------------------- recognising


def recognise(
    arrays: Mapping[str, np.ndarray],
    name: Name,
    *,
    file: str,
    scheme: str | None = None,
    prefix: str | None = None,
    ema: bool = False,
) -> Renamed | None:
    """A file's network under timm's names, or None if no scheme has a place in it.

    Args:
      arrays: of the file, by its own names.
      name: the network that it should be.
      file: for messages.
      scheme: the only one to try.
      prefix: what the names begin with; None tries every beginning at which there is a stem.
      ema: whether moving averages are taken, where their names say that they are.

    Raises:
      WeightsError: the scheme is unknown, or the network is in the file several times.
    """
    schemes = known(name.architecture)
    if scheme is not None:
        check_name("scheme", scheme, schemes, error=WeightsError)
        schemes = {scheme: schemes[scheme]}
    found = [p for s in schemes.values() for p in places(arrays, s, name.architecture)]
    found = [p for p in found if prefix is None or p.prefix == prefix]
    averaged = [p for p in found if is_ema(p.prefix)]
    plain = [p for p in found if not is_ema(p.prefix)]
    found = averaged if ema and averaged else plain or averaged
    best = max((place.hits for place in found), default=0)
    if not best:
        return None
    first, *others = (place for place in found if place.hits == best)
    prefixes = {first.prefix, *(p.prefix for p in others if p.scheme is first.scheme)}
    if len(prefixes) > 1:
        raise WeightsError(
            f"{file}: holds this network under {', '.join(map(repr, sorted(prefixes)))}; choose "
            "one with --prefix=..."
        )
    return _renamed(arrays, first, families.of(name.architecture))


def places(arrays: Mapping[str, np.ndarray], scheme: Scheme, architecture: str) -> Iterator[Place]:
    """Yields every place of a file at which a scheme's stem is, with what else fits there."""
    names = scheme.names(architecture)
    for variant in filter(None, (names, numbered(names, scheme.children))):
        stem = next(iter(variant))
        for found in [name for name in arrays if f".{name}".endswith(f".{stem}")]:
            prefix = found.removesuffix(stem)
            hits = sum(f"{prefix}{name}" in arrays for name in variant)
            yield Place(scheme, variant, prefix, hits)


def _renamed(arrays: Mapping[str, np.ndarray], place: Place, family: ModuleType) -> Renamed:
    """The network at a place of a file.

    Other modules that stand beside the network's own, and another classifier in the place of its,
    are not the network's.
    """
    scheme, names, prefix, _ = place
    head = {name for name, target in names.items() if family.of_head(target)}
    modules = sorted({re.escape(name.partition(".")[0]) for name in names.keys() - head})
    own = re.compile(scheme.own or rf"({'|'.join(modules)})(\.|$)")
    found: dict[str, np.ndarray] = {}
    others = []
    for name, array in arrays.items():
        inner = _inner(name, prefix, head)
        if inner in names:
            target = names[inner]
            found[target] = scheme.to_torch(target, array)
        elif inner is not None and rename.UNUSED.fullmatch(inner):
            found[_counter(inner, names)] = array
        elif inner is not None and own.match(inner):
            found[inner] = array  # if it is unknown, that is for `convert` to say
        else:
            others.append(name)
    return Renamed(place, found, tuple(others))


def _counter(name: str, names: Mapping[str, str]) -> str:
    """timm's name of the counter of steps of a norm."""
    module, _, leaf = name.rpartition(".")
    norm = names.get(f"{module}.weight", name).rpartition(".")[0]
    return f"{norm}.{leaf}"


def _inner(name: str, prefix: str, head: Container[str]) -> str | None:
    """A tensor's name within the network; None if it is outside.

    The head may be beside the body: `efficientnet.encoder...` and `classifier.weight`.
    """
    if name.startswith(prefix):
        return name.removeprefix(prefix)
    parts = prefix.removesuffix(".").split(".")
    for count in range(len(parts) - 1, -1, -1):
        outer = "".join(f"{part}." for part in parts[:count])
        if name.startswith(outer) and name.removeprefix(outer) in head:
            return name.removeprefix(outer)
    return None
