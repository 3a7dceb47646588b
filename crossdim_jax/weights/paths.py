"""Parameters by path: one naming and one pattern language.

A parameter's path is its place in the variables, joined with "/": `params/encoder/NAME/scale`,
`batch_stats/encoder/NAME/mean`. The first part is the *collection*, the second the *module*.

Patterns are Python regular expressions that must match the whole path (`re.fullmatch`), with or
without its collection: `encoder/.*`, `.*/(scale|bias)`. A pattern that matches nothing is an error,
because it is a misspelling.
"""

import functools
import re
from collections.abc import Iterable

from flax import traverse_util

from crossdim_jax.errors import WeightsError

COLLECTIONS = ("params", "batch_stats")
HEAD = "head"  # the classifier's own tensors, which 2D files keep and no network here loads
ENCODER = "encoder"  # the module that weight files hold

# Nested dicts -> {"a/b/c": leaf}, in the tree's order; empty branches vanish. And the inverse.
flatten = functools.partial(traverse_util.flatten_dict, sep="/")
unflatten = functools.partial(traverse_util.unflatten_dict, sep="/")


def is_head(path: str) -> bool:
    """True for a weight file's path of the classification head: a collection, not a module."""
    return path.startswith(f"{HEAD}/")


def inner(path: str) -> str:
    """The path without its collection."""
    collection, _, rest = path.partition("/")
    return rest if collection in COLLECTIONS and rest else path


def select(patterns: Iterable[str], paths: Iterable[str]) -> set[str]:
    """The paths that at least one pattern matches, in the module's pattern language.

    Args:
      patterns: regular expressions for whole paths, with or without the collection.
      paths: the paths to choose from, with or without the collection.

    Raises:
      WeightsError: naming every pattern that is not a regular expression or matches nothing.
    """
    if isinstance(patterns, str):  # a lone string would be taken letter by letter
        patterns = (patterns,)
    paths = list(paths)
    chosen: set[str] = set()
    problems = []
    for pattern in patterns:
        try:
            compiled = re.compile(pattern)
        except re.error as error:
            problems.append(f"{pattern!r}: not a regular expression ({error})")
            continue
        matched = {p for p in paths if compiled.fullmatch(p) or compiled.fullmatch(inner(p))}
        if not matched:
            problems.append(f"{pattern!r}: matches no path")
        chosen |= matched
    if problems:
        example = inner(paths[0]) if paths else "(there is none)"
        raise WeightsError(
            "Parameter patterns are wrong:\n  "
            + "\n  ".join(problems)
            + f"\nA pattern must match a whole path, such as {example!r}; 'encoder/.*' takes all "
            "of the encoder."
        )
    return chosen
