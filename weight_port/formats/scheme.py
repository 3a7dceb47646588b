"""The contract of a naming scheme, of which a family lists those that its files come in."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

TIMM = "timm"  # name of the scheme that every family has, its first
# Padding and eps: networks trained with TensorFlow keep its ways, those of PyTorch's libraries its.
TENSORFLOW, PYTORCH = ("same", 1e-3), ("symmetric", 1e-5)


# A layer's tensors in PyTorch: of a kernel, of one with a bias, of a norm with running statistics.
KERNEL, BIASED = ("weight",), ("weight", "bias")
NORM = ("weight", "bias", "running_mean", "running_var")
NORM_IN_KERAS = dict(zip(NORM, ("gamma", "beta", "moving_mean", "moving_variance"), strict=True))

Layers = Mapping[str, Sequence[str]]  # timm's name of each layer -> its tensors, the stem first


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


def timm(
    layers: Callable[[str], Layers],
    convention: Callable[[str], tuple[str, float]],
    children: Sequence[str] = (),
) -> Scheme:
    """timm's own scheme for a family; layers: those of an architecture, the head's too."""
    return Scheme(
        TIMM, "timm's names", lambda name: tensors(layers(name)), convention, children=children
    )


def tensors(layers: Layers, called: Callable[[str], str] = str) -> dict[str, str]:
    """A library's name of each tensor -> timm's; called: timm's name of a layer -> theirs."""
    return {
        f"{called(layer)}.{leaf}": f"{layer}.{leaf}"
        for layer, leaves in layers.items()
        for leaf in leaves
    }


def in_keras(leaf: str, leaves: Sequence[str]) -> str:
    """Keras' name of one of a layer's tensors."""
    return (NORM_IN_KERAS if leaves == NORM else {"weight": "kernel"}).get(leaf, leaf)


def by_class_in_keras(layers: Iterable[tuple[str, str, Sequence[str]]]) -> dict[str, str]:
    """Names in Keras 3's `.weights.h5`, `conv2d_12.kernel`, -> timm's.

    layers: class in Keras' spelling, timm's name and tensors, in the order of `model.layers` there;
    each is called by its class and by which of that class it is.
    """
    counts: dict[str, int] = {}
    found = {}
    for kind, layer, leaves in layers:
        number = counts[kind] = counts.get(kind, -1) + 1
        theirs = f"{kind}_{number}" if number else kind
        found |= {f"{theirs}.{in_keras(leaf, leaves)}": f"{layer}.{leaf}" for leaf in leaves}
    return found


def numbered(names: Mapping[str, str], children: Sequence[str]) -> dict[str, str]:
    """The names in an `nn.Sequential` of a network's children; nothing without children."""
    numbers = {child: str(number) for number, child in enumerate(children)}
    found = {}
    for name, target in names.items():
        first, _, rest = name.partition(".")
        if first in numbers:
            found[f"{numbers[first]}.{rest}"] = target
    return found
