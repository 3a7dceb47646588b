"""The contract of a naming scheme, of which a family lists those that its files come in."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Padding and eps: networks trained with TensorFlow keep its ways, those of PyTorch's libraries its.
TENSORFLOW, PYTORCH = ("same", 1e-3), ("symmetric", 1e-5)


def as_it_is(name: str, array: np.ndarray) -> np.ndarray:
    """The layout of PyTorch's own."""
    return array


class Scheme(NamedTuple):
    """A library's way to name the tensors of a family, and the conventions that come with it.

    Attributes:
      name: for the flag and the record, such as "torchvision".
      says: whose files these are.
      names: architecture -> the library's name of each tensor -> timm's; the first is the stem's
        kernel. Empty for networks that the library has not.
      convention: timm's model name -> padding and eps of the library's network.
      to_torch: (timm's name, the library's array) -> the array in PyTorch's layout.
      children: top-level modules in order; files of `nn.Sequential(*children)` are read too, in
        which their numbers stand for them.
      own: regular expression for the beginning of a name that is the body's; "" where all that is
        the body's lies in the modules of `names`.
    """

    name: str
    says: str
    names: Callable[[str], Mapping[str, str]]
    convention: Callable[[str], tuple[str, float]]
    to_torch: Callable[[str, np.ndarray], np.ndarray] = as_it_is
    children: Sequence[str] = ()
    own: str = ""


def numbered(names: Mapping[str, str], children: Sequence[str]) -> dict[str, str]:
    """The names in an `nn.Sequential` of a network's children; nothing without children."""
    numbers = {child: str(number) for number, child in enumerate(children)}
    found = {}
    for name, target in names.items():
        first, _, rest = name.partition(".")
        if first in numbers:
            found[f"{numbers[first]}.{rest}"] = target
    return found
