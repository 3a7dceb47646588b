"""Names that other libraries give the tensors of a classifier, read as timm's."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from weight_port import families, rename
from weight_port.names import Name

TIMM = "timm"


def in_timms_names(
    name: Name, arrays: Mapping[str, np.ndarray]
) -> tuple[Name, Mapping[str, np.ndarray], str]:
    """A checkpoint's tensors by timm's names.

    Args:
      name: what the checkpoint is said to be.
      arrays: by the names of the file.

    Returns:
      the name, with the conventions of the library whose names those are; the tensors; and the
      library. Where the names are of no library that is known, all is left as it is.
    """
    family = families.of(name.architecture)
    if not all(map(family.flax_path, (n for n in arrays if not rename.UNUSED.fullmatch(n)))):
        for library, scheme in getattr(family, "SCHEMES", {}).items():
            renamed = scheme.renamed(name.architecture, arrays)
            if renamed is not None:
                padding, eps = scheme.convention or (name.padding, name.eps)
                return dataclasses.replace(name, padding=padding, eps=eps), renamed, library
    return name, arrays, TIMM
