"""The errors a user can act on.

Each message is complete on its own: it names the file or field, what was found, what was expected
and what to do. `launch.py` and `weight_port` print it without a traceback and exit with status 1.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from crossdim_jax.text import shown


class CrossdimError(ValueError):
    """Base of the errors that are the input's fault, not the program's."""


class ConfigError(CrossdimError):
    """A configuration field is unknown, of the wrong type or out of range."""


class WeightsError(CrossdimError):
    """A weight file does not fit the model it is to be loaded into, or is damaged."""


class DataError(CrossdimError):
    """A data file or folder is missing, unreadable or not what it should be."""


class ManyErrors(DataError):
    """Several cases are faulty; all are reported at once.

    Args:
      title: what was being done, and what to do about it.
      failures: `(case id, message)` pairs, at least one.
    """

    def __init__(self, title: str, failures: Iterable[tuple[str, str]]):
        self.failures = list(failures)
        lines = [f"  {n}. {shown(case)}: {why}" for n, (case, why) in enumerate(self.failures, 1)]
        super().__init__("\n".join([f"{title} ({len(lines)} faulty):", *lines]))


def unknown_name(what: str, name: Any, known: Collection[Any]) -> str:
    """Message of an unknown name in a closed set; None among the known ones is not listed."""
    listed = ", ".join(str(entry) for entry in known if entry is not None)
    return f"{what}={name!r} is unknown; known: {listed}"


def check_name(
    what: str, name: Any, known: Collection[Any], *, error: type[CrossdimError] = ConfigError
) -> None:
    """Raises ConfigError, or `error`, that lists the known names unless `name` is one of them.

    Args:
      what: the setting whose value it is, "encoder".
      name: of any type.
      known: the closed set, in the order of the message.
      error: class of the error.
    """
    if name not in list(known):  # a list also takes what cannot be a key
        raise error(unknown_name(what, name, known))


def lookup(what: str, name: str, table: Mapping[str, Any]) -> Any:
    """Entry of a closed table. Raises ConfigError that lists its names if it has no such one."""
    check_name(what, name, table)
    return table[name]


def first_of(problems: Sequence[str], most: int = 5) -> str:
    """The first few problems, a line each, and how many more there are."""
    lines = list(problems[:most])
    if len(problems) > most:
        lines.append(f"and {len(problems) - most} more")
    return "\n  ".join(lines)
